"""Image folders in ImageNet's layout, and shards of them."""
