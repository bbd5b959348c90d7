"""Detectors around any backbone, on torchvision's parts."""
