"""Means over seeds, their spread, and differences of paired runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Attributes:
        mean: their mean, in their unit.
        std: their sample standard deviation (divisor n - 1, as of the papers' five runs); None of a single value.
        n: how many.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """The mean difference of runs that share their seeds.

    Attributes:
        mean: in the values' unit.
        low, high: the ends of its 95 % confidence interval, by Student's t over the pairs; None of a single pair.
        seeds: the pairs.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: list[int]

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.seeds)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None of nothing."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """The difference ours - baseline over the seeds that both have; None if they share none."""
    seeds = sorted(set(ours) & set(baseline))
    differences = spread([ours[seed] - baseline[seed] for seed in seeds])
    if differences is None:
        return None
    if differences.n == 1:
        return Paired(differences.mean, None, None, seeds)
    low, high = _interval([ours[seed] for seed in seeds], [baseline[seed] for seed in seeds])
    return Paired(differences.mean, low, high, seeds)


def _interval(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The ends of the confidence interval of a mean difference, as the paired t-test has it."""
    from scipy.stats import ttest_rel  # takes most of a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are all equal: an interval of no width
        interval = ttest_rel(ours, baseline).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)
