"""Layers and kernels that compute the same as the plain ones, faster or for several networks at once."""
