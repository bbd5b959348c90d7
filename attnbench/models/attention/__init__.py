"""Attention modules, one method a file, each with the builder that its option names."""
