"""Attention modules: one method per file, each with the builder that its option file names."""
