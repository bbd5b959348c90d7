"""Image files: decoding, cropping, checking."""
