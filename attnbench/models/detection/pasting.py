"""Masks of detections, pasted into the image one at a time, and only where their box is.

torchvision pastes all masks of an image at once, each as floats of the image's size: 100 masks of a photo of 12
megapixels take 5 GB, and twice as much while they are joined. The pixels here are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

SMALL = "small_masks"  # the key of masks that are not pasted yet, (n, 1, side, side)
PADDING = 1  # pixels around a small mask, as torchvision has them
INSIDE = 0.5  # the least value of a pixel that belongs to an object


class Region(NamedTuple):
    """The part of an image where a detection's mask may be.

    Attributes:
        left, top: its first pixel.
        inside: whether each pixel belongs to the object, bool (height, width).
    """

    left: int
    top: int
    inside: np.ndarray


@contextmanager
def unpasted(network: nn.Module) -> Iterator[None]:
    """Within this context, a torchvision detector leaves its masks small, under the key ``small_masks``."""
    transform: Any = getattr(network, "transform", None)
    if transform is None or not hasattr(transform, "postprocess"):
        yield
        return
    paste = transform.postprocess

    def leave(found: list[dict[str, Tensor]], *sizes: Any) -> list[dict[str, Tensor]]:
        small = [one.pop("masks", None) for one in found]
        pasted: list[dict[str, Tensor]] = paste(found, *sizes)
        return [one if mask is None else one | {SMALL: mask} for one, mask in zip(pasted, small, strict=True)]

    transform.postprocess = leave
    try:
        yield
    finally:
        del transform.postprocess  # the class's own is found again


def regions(found: Mapping[str, Tensor], height: int, width: int) -> Iterator[Region]:
    """The region of each detection's mask, one after another; none if there are no masks.

    Args:
        found: ``boxes`` (n, 4) of an image, and ``small_masks`` (n, 1, side, side) or ``masks`` (n, 1, H, W).
        height, width: the image's, in pixels.
    """
    if SMALL not in found:
        yield from (Region(0, 0, (mask[0] > INSIDE).cpu().numpy()) for mask in found.get("masks", ()))
        return
    masks, scale = expand_masks(found[SMALL].cpu(), PADDING)
    boxes = expand_boxes(found["boxes"].cpu(), scale).long()
    for mask, box, finite in zip(masks, boxes, found["boxes"].isfinite().all(1).tolist(), strict=True):
        left, top = (int(at) for at in box[:2].clamp(min=0))
        right, bottom = min(int(box[2]) + 1, width), min(int(box[3]) + 1, height)
        if not finite or right <= left or bottom <= top:
            yield Region(0, 0, np.zeros((0, 0), dtype=bool))
            continue
        moved = box - box.new_tensor([left, top, left, top])
        part = paste_mask_in_image(mask[0], moved, bottom - top, right - left)
        yield Region(left, top, (part > INSIDE).numpy())


def run_lengths(region: Region, canvas: np.ndarray) -> dict[str, Any]:
    """A region in COCO's compressed form.

    Args:
        canvas: zeros of the image's size, uint8 (H, W) in Fortran's order; they are zeros again afterwards.
    """
    height, width = region.inside.shape
    place = canvas[region.top : region.top + height, region.left : region.left + width]
    place[:] = region.inside
    encoded: dict[str, Any] = rle.encode(canvas)
    place[:] = 0
    return encoded


def blank(height: int, width: int) -> np.ndarray:
    """A canvas for ``run_lengths``."""
    return np.zeros((height, width), dtype=np.uint8, order="F")
