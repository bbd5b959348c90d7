"""What runs are measured by: accuracy, COCO's and VOC's average precision."""
