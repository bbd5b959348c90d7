"""The detections and the ground truth of an image, in the form that both evaluators read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle
from torch import Tensor

from attnbench.models.detection import pasting

RunLengths = dict[str, Any]  # a mask in COCO's compressed form: size, counts


@dataclass(frozen=True)
class Found:
    """The d detections and the ground truth of one image, in plain arrays that can be sent between processes.

    Attributes:
        image: the sample's number.
        boxes: the detected boxes, float64 (d, 4): left, top, right, bottom in pixels.
        labels: the detected classes, int64 (d,), from 1.
        scores: float64 (d,).
        masks: the detected masks; None without masks.
        true_boxes, true_labels, areas, difficult, crowd, true_masks: the ground truth; see
            ``attnbench.data.detection.scenes``.
    """

    image: int
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray
    areas: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    masks: list[RunLengths] | None = None
    true_masks: list[RunLengths] | None = None


def found(detection: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Found:
    """Join a detector's output for one image, in torchvision's format, with the image's target.

    Masks (d, 1, H, W) in [0, 1] are thresholded at 0.5; they may be left small (see ``pasting``), as long as the target
    has masks. A detection is dropped if its score or box is not finite.
    """
    good = detection["scores"].isfinite() & detection["boxes"].isfinite().all(1)
    has_masks = ("masks" in detection or pasting.SMALL in detection) and "masks" in target
    return Found(
        image=int(target["image"]),
        boxes=_array(detection["boxes"][good]),
        labels=detection["labels"][good].cpu().numpy(),
        scores=_array(detection["scores"][good]),
        true_boxes=_array(target["boxes"]),
        true_labels=target["labels"].cpu().numpy(),
        areas=_array(target["areas"]),
        difficult=target["difficult"].cpu().numpy(),
        crowd=target["crowd"].cpu().numpy(),
        masks=_detected_masks(detection, good, target) if has_masks else None,
        true_masks=run_lengths(target["masks"]) if has_masks else None,
    )


def _detected_masks(detection: Mapping[str, Tensor], good: Tensor, target: Mapping[str, Tensor]) -> list[RunLengths]:
    if pasting.SMALL not in detection:
        return run_lengths(detection["masks"][good][:, 0] > 0.5)
    height, width = target["masks"].shape[-2:]
    small = {key: detection[key][good] for key in ("boxes", pasting.SMALL)}
    canvas = pasting.blank(height, width)
    return [pasting.run_lengths(region, canvas) for region in pasting.regions(small, height, width)]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def run_lengths(masks: Tensor) -> list[RunLengths]:
    """Masks (n, H, W) in COCO's compressed form."""
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.byte().cpu().numpy().transpose(1, 2, 0))
    encoded: list[RunLengths] = rle.encode(columns)
    return encoded
