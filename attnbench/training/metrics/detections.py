"""What a detector found in an image beside what is there: the form that both evaluators read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle
from torch import Tensor

RunLengths = dict[str, Any]  # a mask in COCO's compressed form: size, counts


@dataclass(frozen=True)
class Found:
    """One image, in plain arrays that travel between processes.

    Attributes:
        image: the sample's number.
        boxes: float64 (d, 4), what was found: left, top, right, bottom in pixels.
        labels: int64 (d,), from 1.
        scores: float64 (d,).
        masks: of what was found, if masks were asked for.
        true_boxes, true_labels, areas, difficult, crowd, true_masks: what is there; see
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
    """A detector's answer for one image, as torchvision's give it, with that image's target.

    Masks, (d, 1, H, W) in [0, 1], are cut at one half. A detection whose score or box is not finite is none.
    """
    good = detection["scores"].isfinite() & detection["boxes"].isfinite().all(1)
    has_masks = "masks" in detection and "masks" in target
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
        masks=run_lengths(detection["masks"][good][:, 0] > 0.5) if has_masks else None,
        true_masks=run_lengths(target["masks"]) if has_masks else None,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def run_lengths(masks: Tensor) -> list[RunLengths]:
    """Masks (n, H, W) in COCO's compressed form."""
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.byte().cpu().numpy().transpose(1, 2, 0))
    encoded: list[RunLengths] = rle.encode(columns)
    return encoded
