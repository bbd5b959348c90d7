"""Means and deviations over seeds, and differences of paired runs over seeds or over pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Attributes:
        mean: the mean, in the unit of the values.
        std: the sample standard deviation (divisor n - 1, as for the papers' five runs); None for a single value.
        n: the number of values.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """The mean difference over pairs of runs with the same seed.

    Attributes:
        mean: in the unit of the values.
        low, high: the bounds of its 95 % confidence interval, by the paired t-test; None for a single pair.
        seeds: the seed of each pair.
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
    """Mean and sample standard deviation; None if there are no values."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """The mean difference ours - baseline over the seeds that both have; None if they share no seed."""
    seeds = sorted(set(ours) & set(baseline))
    differences = spread([ours[seed] - baseline[seed] for seed in seeds])
    if differences is None:
        return None
    if differences.n == 1:
        return Paired(differences.mean, None, None, seeds)
    low, high = _interval([ours[seed] for seed in seeds], [baseline[seed] for seed in seeds])
    return Paired(differences.mean, low, high, seeds)


def mcnemar(only_ours: int, only_baseline: int) -> float:
    """The p-value of the exact two-sided McNemar test.

    Args:
        only_ours, only_baseline: pictures that one classifier gets right and the other one wrong.
    """
    from scipy.stats import binomtest

    differing = only_ours + only_baseline
    return float(binomtest(only_ours, differing, 0.5).pvalue) if differing else 1.0


@dataclass(frozen=True)
class Resampled:
    """A difference over pictures, and how it varies if the pictures are drawn again.

    Attributes:
        mean: the difference over all pictures, in the unit of the metric.
        low, high: the bounds of its 95 % confidence interval, by percentiles of the resamples.
        p: the two-sided p-value: twice the smaller share of resamples on either side of 0, of n resamples and the
            data themselves, so at least 2 / (n + 1).
    """

    mean: float
    low: float
    high: float
    p: float


def resampled(
    difference: Callable[[np.ndarray], float], pictures: int, resamples: int, seen: Callable[[int], object] = int
) -> Resampled:
    """A paired bootstrap over pictures; the same numbers every time.

    Args:
        difference: the difference, given how often each picture was drawn, int64 (pictures,).
        seen: called with 1 after each resample.
    """
    random, whole = np.random.default_rng(0), np.ones(pictures, dtype=np.int64)
    drawn = []
    for _ in range(resamples):
        drawn.append(difference(np.bincount(random.integers(0, pictures, pictures), minlength=pictures)))
        seen(1)
    values = np.array(drawn)
    low, high = np.percentile(values, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    beyond = min(int((values <= 0).sum()), int((values >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return Resampled(difference(whole), float(low), float(high), p)


def _interval(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The bounds of a mean difference's confidence interval, by the paired t-test."""
    from scipy.stats import ttest_rel  # imported here, since it takes most of a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # if all differences are equal, the interval has width 0
        interval = ttest_rel(ours, baseline).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)
