"""What a classifier answers for each picture, and the measures of it: by class, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TOP = 5
BINS = 15  # of the calibration error


def answered(logits: Tensor, targets: Tensor) -> Tensor:
    """A row for each sample, float64 (N, 5): label, prediction, its probability, the label's probability, rank.

    The rank is the label's place among the classes in the order of their logits, from 1; 0 if a logit is not finite.
    Ties are ordered as ``topk`` orders them, so that the ranks agree with the top-1 and top-5 accuracy.

    Args:
        logits: (N, classes).
        targets: int64 (N,).
    """
    logits = logits.detach().float()
    shares = logits.softmax(1)
    first = logits.topk(min(TOP, logits.shape[1])).indices
    own = logits.gather(1, targets[:, None])
    beyond = (1 + (logits > own).sum(1)).clamp(min=first.shape[1] + 1)
    among = first == targets[:, None]
    rank = torch.where(among.any(1), 1 + among.int().argmax(1), beyond)
    rank = torch.where(logits.isfinite().all(1), rank, 0)
    best, of_label = shares.gather(1, first[:, :1])[:, 0], shares.gather(1, targets[:, None])[:, 0]
    return torch.stack([part.double() for part in (targets, first[:, 0], best, of_label, rank)], 1)


@dataclass(frozen=True)
class Answers:
    """What a classifier answered for N pictures.

    Attributes:
        samples: the pictures' numbers in the data set, int64 (N,).
        labels, predictions: indices into the classes, int64 (N,).
        confidences: the probability of the prediction, float32 (N,).
        label_confidences: the probability of the label, float32 (N,).
        ranks: the label's place in the order of logits, int64 (N,), from 1; 0 if the logits were not finite.
    """

    samples: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    label_confidences: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray, rows: np.ndarray) -> Answers:
        """The answers in the order of the samples' numbers; ``rows`` are those of ``answered``."""
        order = np.argsort(samples, kind="stable")
        labels, predictions, best, of_label, ranks = rows[order].T
        return cls(
            samples=samples[order],
            labels=labels.astype(np.int64),
            predictions=predictions.astype(np.int64),
            confidences=best.astype(np.float32),
            label_confidences=of_label.astype(np.float32),
            ranks=ranks.astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """Whether each answer is right, bool (N,)."""
        return self.ranks == 1

    def accuracy(self, top: int = 1) -> float:
        """Top-1 or top-k accuracy in percent."""
        return 100 * float(((self.ranks >= 1) & (self.ranks <= top)).mean())


class OfClass(NamedTuple):
    """The answers for one class.

    Attributes:
        pictures: pictures of the class.
        accuracy: percent of them that were recognised; None without pictures.
        answers: how often the class was the answer.
        precision: percent of these answers that were right; None without any.
        confused: the wrong answer that its pictures got most often; empty if there was none.
    """

    name: str
    pictures: int
    accuracy: float | None
    answers: int
    precision: float | None
    confused: str


def confusion(answers: Answers, classes: int) -> np.ndarray:
    """How often pictures of class i were taken for class j, int64 (classes, classes).

    Pictures whose logits were not finite have no answer and are left out.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    finite = answers.ranks > 0
    np.add.at(counts, (answers.labels[finite], answers.predictions[finite]), 1)
    return counts


def by_class(answers: Answers, names: Sequence[str]) -> list[OfClass]:
    """The answers for each class."""
    counts = confusion(answers, len(names))
    pictures = np.bincount(answers.labels, minlength=len(names))
    found = []
    for number, name in enumerate(names):
        right, asked, told = int(counts[number, number]), int(pictures[number]), int(counts[:, number].sum())
        wrong = counts[number].copy()
        wrong[number] = 0
        confused = names[int(wrong.argmax())] if wrong.any() else ""
        shares = [100 * right / whole if whole else None for whole in (asked, told)]
        found.append(OfClass(name, asked, shares[0], told, shares[1], confused))
    return found


class Bin(NamedTuple):
    """Answers whose probability is above ``low`` and at most ``high``.

    Attributes:
        confidence, accuracy: means in [0, 1]; None without pictures.
    """

    low: float
    high: float
    pictures: int
    confidence: float | None
    accuracy: float | None


def calibration(answers: Answers, bins: int = BINS) -> list[Bin]:
    """The answers in bins of equal width of their probability (Guo et al., arXiv:1706.04599)."""
    finite = answers.ranks > 0
    shares, right = answers.confidences[finite].astype(np.float64), answers.right[finite]
    place = np.clip(np.ceil(shares * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        here = place == number
        means = (float(shares[here].mean()), float(right[here].mean())) if here.any() else (None, None)
        found.append(Bin(number / bins, (number + 1) / bins, int(here.sum()), *means))
    return found


def calibration_error(answers: Answers, bins: int = BINS) -> float:
    """The expected calibration error in percent: the mean distance of probability and accuracy over the bins."""
    found = calibration(answers, bins)
    total = sum(one.pictures for one in found)
    gaps = (
        one.pictures * abs(one.accuracy - one.confidence)
        for one in found
        if one.accuracy is not None and one.confidence is not None
    )
    return 100 * sum(gaps) / total if total else float("nan")


def most_wrong(answers: Answers, count: int) -> np.ndarray:
    """The positions of up to ``count`` wrong answers, those with the highest probability first."""
    wrong = np.flatnonzero(~answers.right & (answers.ranks > 0))
    order = np.lexsort((answers.samples[wrong], -answers.confidences[wrong]))
    return wrong[order[:count]]
