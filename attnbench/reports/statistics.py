"""Means over seeds, their spread, and differences of paired runs."""

from __future__ import annotations

import math
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
    """The difference ours - baseline over the seeds that both have; None if they share none.

    The interval is mean ± t(n - 1, 0.975) std / sqrt(n) of the differences.
    """
    seeds = sorted(set(ours) & set(baseline))
    differences = spread([ours[seed] - baseline[seed] for seed in seeds])
    if differences is None:
        return None
    if differences.std is None:
        return Paired(differences.mean, None, None, seeds)
    half = quantile(differences.n - 1) * differences.std / math.sqrt(differences.n)
    return Paired(differences.mean, differences.mean - half, differences.mean + half, seeds)


def quantile(degrees: int) -> float:
    """Student's t that a two-sided 95 % interval reaches to."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))
