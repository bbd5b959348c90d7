"""COCO's segmentations: polygons and run lengths, checked before anything is drawn, and drawn as masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from attnbench.base.errors import DataError

REPAIR = "repair or remove it"
SLACK = 10  # pixels by which an outline may leave its image or its box; tools differ by a few


def run_lengths(outline: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation in COCO's compressed format."""
    if isinstance(outline, list):
        return rle.merge(rle.frPyObjects(outline, height, width))
    if isinstance(outline["counts"], list):
        return rle.frPyObjects(outline, height, width)
    return {"size": outline["size"], "counts": outline["counts"].encode()}


def mask(outline: Any, height: int, width: int) -> np.ndarray:
    """A segmentation as a mask, uint8 (H, W)."""
    return rle.decode(run_lengths(outline, height, width))


def area(outline: Any, height: int, width: int) -> float:
    """The number of pixels in a segmentation."""
    return float(rle.area(run_lengths(outline, height, width)))


def checked_outline(outline: Any, box: Sequence[float], width: int, height: int, where: str) -> Any:
    """A segmentation that can be drawn, and is where its box is.

    Args:
        box: left, top, right and bottom.

    Raises:
        DataError: it is not a segmentation, leaves its image or its box by far, or has another size than the image.
    """
    if isinstance(outline, list):
        _refuse_polygons(outline, box, width, height, where)
    elif isinstance(outline, Mapping):
        _refuse_runs(outline, width, height, where)
    else:
        raise DataError(f"a segmentation that is neither polygons nor run lengths: {outline!r:.40}", where, REPAIR)
    return outline


def _refuse_polygons(parts: list[Any], box: Sequence[float], width: int, height: int, where: str) -> None:
    if not all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in parts):
        raise DataError("a polygon with fewer than three corners", where, REPAIR)
    numbers = (n for part in parts for n in part)
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e12 for n in numbers):
        raise DataError("a polygon with a corner that is not a number", where, REPAIR)
    corners = np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in parts])
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    extent = f"{left:g}, {top:g} to {right:g}, {bottom:g}"
    if left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
        raise DataError(f"an outline outside its image of {width}x{height}: {extent}", where, REPAIR)
    slack = [max(SLACK, side) for side in (box[2] - box[0], box[3] - box[1])]
    beyond = (
        *(left < box[0] - slack[0], top < box[1] - slack[1], right > box[2] + slack[0], bottom > box[3] + slack[1]),
        *(left >= box[2], top >= box[3], right <= box[0], bottom <= box[1]),
    )
    if any(beyond):
        of = "{:g}, {:g} to {:g}, {:g}".format(*box)
        raise DataError(f"an outline that is not where its box is: {extent}, and the box {of}", where, REPAIR)


def _refuse_runs(outline: Mapping[str, Any], width: int, height: int, where: str) -> None:
    size, counts = outline.get("size"), outline.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        raise DataError(f"run lengths of {size}, not of {[height, width]}", where, REPAIR)
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(n, int) and n >= 0 for n in runs):
        raise DataError("run lengths that are not whole numbers from 0 on", where, REPAIR)
    if sum(runs) != width * height:
        raise DataError("run lengths that do not fill the image", where, REPAIR)
    if not any(runs[1::2]):
        raise DataError("run lengths of a mask without a pixel", where, REPAIR)


def _uncompressed(text: str) -> list[int] | None:
    """The runs in COCO's compressed text: five bits a character, the lowest first, later runs as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else None
