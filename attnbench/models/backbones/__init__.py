"""Backbones by family; attention is inserted into them, never written into them."""
