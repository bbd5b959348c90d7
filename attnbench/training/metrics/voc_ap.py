"""PASCAL VOC's average precision: by eleven points as in 2007, and by the area under the curve as since 2010."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from attnbench.training.metrics.detections import Found

Rule = Literal["11point", "area"]


def voc_ap(images: Sequence[Found], classes: int, overlap: float = 0.5) -> dict[str, float]:
    """``mAP`` by the 11-point rule and ``mAP_area`` by the area, in percent, over the classes that have objects.

    Args:
        images: every image once.
        classes: the number of classes, without the background.
        overlap: the least intersection over union at which an object counts as found.
    """
    ordered = sorted(images, key=lambda image: image.image)
    curves = [curve(ordered, label, overlap) for label in range(1, classes + 1)]
    there = [one for one in curves if one is not None]
    rules: dict[str, Rule] = {"mAP": "11point", "mAP_area": "area"}
    return {
        name: 100 * float(np.mean([average_precision(*one, rule) for one in there])) if there else 0.0
        for name, rule in rules.items()
    }


def by_class(images: Sequence[Found], classes: int, overlap: float = 0.5) -> list[dict[str, float]]:
    """VOC's average precision of each class in percent, ``voc_AP`` by 11 points and ``voc_AP_area`` by the area.

    It is empty for a class without objects. The means are ``voc_ap``'s.
    """
    ordered = sorted(images, key=lambda image: image.image)
    rules: dict[str, Rule] = {"voc_AP": "11point", "voc_AP_area": "area"}
    found = []
    for label in range(1, classes + 1):
        one = curve(ordered, label, overlap)
        found.append({name: 100 * average_precision(*one, rule) for name, rule in rules.items()} if one else {})
    return found


def curve(images: Sequence[Found], label: int, overlap: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Recall and precision of a class after each detection, in the order of scores; None for a class without objects.

    Each detection is compared with the object that it overlaps most. If they overlap too little, it is wrong. If the
    object is difficult or a crowd, it is ignored. If a detection with a higher score has found the object, it is wrong;
    otherwise it is right.
    """
    objects = sum(int(((image.true_labels == label) & ~image.difficult & ~image.crowd).sum()) for image in images)
    if not objects:
        return None
    scored = [verdict for image in images for verdict in _verdicts(image, label, overlap)]
    scored.sort(key=lambda verdict: -verdict[0])
    right = np.cumsum([verdict[1] == "right" for verdict in scored])
    wrong = np.cumsum([verdict[1] == "wrong" for verdict in scored])
    return right / objects, right / np.maximum(right + wrong, 1)


def _verdicts(image: Found, label: int, overlap: float) -> list[tuple[float, str]]:
    """The score of each detection of a class in an image, and whether it is right, wrong or ignored."""
    truth = image.true_boxes[image.true_labels == label]
    exempt = (image.difficult | image.crowd)[image.true_labels == label]
    mine = image.labels == label
    boxes, scores = image.boxes[mine], image.scores[mine]
    overlaps = iou(boxes, truth)
    found: set[int] = set()
    verdicts = []
    for i in np.argsort(-scores, kind="stable"):
        best = int(overlaps[i].argmax()) if len(truth) else -1
        if best < 0 or overlaps[i, best] < overlap:
            verdict = "wrong"
        elif exempt[best]:
            verdict = "ignored"
        else:
            verdict = "wrong" if best in found else "right"
            found.add(best)
        verdicts.append((float(scores[i]), verdict))
    return verdicts


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) with others (m, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    areas, other_areas = ((some[:, 2:] - some[:, :2]).prod(1) for some in (boxes, others))
    return shared / (areas[:, None] + other_areas[None, :] - shared)


def average_precision(recall: np.ndarray, precision: np.ndarray, rule: Rule) -> float:
    """The average precision of a curve, in [0, 1]."""
    return RULES[rule](recall, precision)


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """The mean of the best precision at a recall of at least 0, 0.1, ..., 1."""
    points = [precision[recall >= at - 1e-12].max(initial=0.0) for at in np.linspace(0, 1, 11)]
    return float(np.mean(points))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the curve, after its precision is made monotonic from the right."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float((steps * best).sum())


RULES = {"11point": _eleven_points, "area": _area}
