"""Metrics: titles of all of them, and the average precision of COCO and VOC."""
