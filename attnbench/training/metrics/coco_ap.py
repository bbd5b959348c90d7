"""COCO's average precision, by pycocotools: ten thresholds of overlap, three object sizes, crowds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attnbench.training.metrics.detections import Found, RunLengths

NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL")  # the first six of COCOeval's twelve numbers
NOWHERE = 1e11  # an area outside every range of sizes


def coco_ap(images: Sequence[Found], classes: int, masks: bool = False) -> dict[str, float]:
    """AP, AP50, AP75, APS, APM and APL in percent, of boxes or (``mask_AP`` and so on) of masks.

    VOC's difficult objects get an area outside every range of sizes, so that COCO ignores them: a detection of one
    is neither right nor wrong, and it need not be detected. A size without objects has no AP and is left out.

    Args:
        images: every image once.
        classes: the number of classes, without the background.
        masks: whether to compare masks instead of boxes.
    """
    evaluation = compared(images, classes, masks)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    prefix = "mask_" if masks else ""
    return {
        f"{prefix}{name}": 100 * float(value)
        for name, value in zip(NAMES, evaluation.stats, strict=False)
        if value >= 0
    }


def compared(images: Sequence[Found], classes: int, masks: bool = False) -> COCOeval:
    """pycocotools' evaluation, with the detections of every image matched with its objects."""
    ordered = sorted(images, key=lambda image: image.image)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        truth = _dataset([entry for image in ordered for entry in _truth(image, masks)], ordered, classes)
        detections = [entry for image in ordered for entry in _detections(image, masks)]
        answer = _dataset(detections, ordered, classes)
        evaluation = COCOeval(truth, answer, "segm" if masks else "bbox")
        evaluation.evaluate()
    return evaluation


def ap_by_class(images: Sequence[Found], classes: int, masks: bool = False) -> list[dict[str, float]]:
    """AP, AP50 and AP75 of each class in percent, named as in ``coco_ap``; empty for a class without objects."""
    evaluation = compared(images, classes, masks)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, classes), all sizes, 100 detections
    prefix = "mask_" if masks else ""
    found = []
    for label in range(classes):
        of_class = precision[:, :, label]
        parts = {"AP": of_class, "AP50": of_class[:1], "AP75": of_class[5:6]}
        there = bool((of_class > -1).any())
        found.append({f"{prefix}{name}": 100 * float(part.mean()) for name, part in parts.items()} if there else {})
    return found


def _dataset(entries: list[dict[str, Any]], images: Sequence[Found], classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        # Sizes are required but not used, because masks are in compressed form.
        "images": [{"id": image.image, "height": 0, "width": 0} for image in images],
        "categories": [{"id": label} for label in range(1, classes + 1)],
        "annotations": [entry | {"id": n} for n, entry in enumerate(entries, start=1)],
    }
    coco.createIndex()
    return coco


def _truth(image: Found, masks: bool) -> list[dict[str, Any]]:
    shapes = image.true_masks if masks and image.true_masks else [None] * len(image.true_boxes)
    areas = np.where(image.difficult, NOWHERE, image.areas)
    each = zip(image.true_boxes, image.true_labels, shapes, areas, image.crowd, strict=True)
    return [
        _entry(image, box, label, shape) | {"area": float(area), "iscrowd": int(crowd)}
        for box, label, shape, area, crowd in each
    ]


def _detections(image: Found, masks: bool) -> list[dict[str, Any]]:
    return [_detection(image, i, image.masks[i] if masks and image.masks else None) for i in range(len(image.boxes))]


def _detection(image: Found, i: int, mask: RunLengths | None) -> dict[str, Any]:
    entry = _entry(image, image.boxes[i], image.labels[i], mask)
    width, height = entry["bbox"][2:]
    area = float(rle.area(mask)) if mask is not None else width * height
    return entry | {"score": float(image.scores[i]), "area": area, "iscrowd": 0}


def _entry(image: Found, box: np.ndarray, label: int, mask: RunLengths | None) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    entry: dict[str, Any] = {
        "image_id": image.image,
        "category_id": int(label),
        "bbox": [left, top, right - left, bottom - top],
    }
    return entry if mask is None else entry | {"segmentation": mask}
