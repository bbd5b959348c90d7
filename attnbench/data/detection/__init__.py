"""Data sets of images with boxes and masks: VOC, COCO, digits on canvases."""
