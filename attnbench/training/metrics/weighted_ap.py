"""COCO's average precision with a weight for each picture, so that pictures can be drawn again without matching again.

With weights of 1 it is ``coco_ap``'s to the last digit; a picture of weight 2 counts as if it were there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attnbench.training.metrics.coco_ap import compared
from attnbench.training.metrics.detections import Found

METRICS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # by position of the overlap


class _OfClass(NamedTuple):
    """The detections of a class, the highest score first, and its objects.

    Attributes:
        right, wrong: by overlap, bool (overlaps, d); a detection that is ignored is neither.
        picture: the position of each detection's picture, int64 (d,).
        objects: objects to find in each picture, int64 (pictures,).
    """

    right: np.ndarray
    wrong: np.ndarray
    picture: np.ndarray
    objects: np.ndarray


class WeightedAP:
    """The matches of detections with objects, ready to be weighted.

    Args:
        images: every image once.
        classes: the number of classes.
        metric: ``AP``, ``AP50`` or ``AP75``, with ``mask_`` before it for masks.
    """

    def __init__(self, images: Sequence[Found], classes: int, metric: str) -> None:
        evaluation = compared(images, classes, metric.startswith("mask_"))
        overlaps = METRICS[metric.removeprefix("mask_")]
        self.recalls: np.ndarray = evaluation.params.recThrs
        ranges, count = len(evaluation.params.areaRng), len(images)
        self.parts = []
        for label in range(classes):
            first = label * ranges * count  # of all sizes; the other ranges of areas follow
            part = _part(evaluation.evalImgs[first : first + count], overlaps)
            if part.objects.any():
                self.parts.append(part)

    def __call__(self, weights: np.ndarray) -> float:
        """The average precision in percent, over the classes that have objects.

        Args:
            weights: of each image in the order of their numbers, int64 (images,).
        """
        found = [one for part in self.parts if (one := self._of_class(part, weights)) is not None]
        return 100 * float(np.mean(found)) if found else 0.0

    def _of_class(self, part: _OfClass, weights: np.ndarray) -> float | None:
        objects = int((part.objects * weights).sum())
        if not objects:
            return None
        weight = weights[part.picture]
        right, wrong = (np.cumsum(of * weight, axis=1, dtype=np.float64) for of in (part.right, part.wrong))
        precision = right / np.maximum(right + wrong, np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], 1)  # a recall that is never reached
        reached = [np.searchsorted(row / objects, self.recalls, side="left") for row in right]
        return float(np.mean([row[at] for row, at in zip(best, reached, strict=True)]))


def _part(evaluated: Sequence[dict[str, np.ndarray] | None], overlaps: slice) -> _OfClass:
    """One class of pycocotools' matches, None for a picture that has neither an object nor a detection of it."""
    there = [(number, one) for number, one in enumerate(evaluated) if one is not None]
    objects = np.zeros(len(evaluated), dtype=np.int64)
    for number, one in there:
        objects[number] = int((np.asarray(one["gtIgnore"]) == 0).sum())
    if not there:
        none = np.zeros((1, 0), dtype=bool)
        return _OfClass(none, none, np.zeros(0, dtype=np.int64), objects)
    scores = np.concatenate([one["dtScores"] for _, one in there])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([one["dtMatches"] for _, one in there], 1)[overlaps, order] != 0
    ignored = np.concatenate([one["dtIgnore"] for _, one in there], 1)[overlaps, order].astype(bool)
    picture = np.repeat([number for number, _ in there], [len(one["dtScores"]) for _, one in there])
    return _OfClass(matched & ~ignored, ~matched & ~ignored, picture[order], objects)
