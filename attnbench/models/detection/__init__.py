"""Detectors around any backbone, built from torchvision's parts."""
