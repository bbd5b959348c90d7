"""Data sets of images with boxes and masks: VOC, COCO and digits on canvases."""
