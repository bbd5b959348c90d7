"""Decoding, cropping and checking of image files."""
