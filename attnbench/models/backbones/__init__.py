"""Backbones by family. None of them contains attention; it is inserted afterwards."""
