"""Layers and kernels with the results of stock layers, but faster, or for several networks at once."""
