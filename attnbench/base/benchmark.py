"""Compares the speed of functions, on a machine that other processes use too.

The functions are called in turns in one process, and each one goes first equally often. So anything that slows the
machine down affects all of them. Results are ratios of times from the same turn: their median, and its confidence
interval of at least 95 %. The interval comes from order statistics, so no distribution is assumed.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Subject = Callable[[], object]
CONFIDENCE = 0.95


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended (for example, data workers)."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


wall_seconds = time.perf_counter


@dataclass(frozen=True)
class Median:
    """A median and its confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}..{self.high:.3g})"


def median(values: Sequence[float]) -> Median:
    """The median and its confidence interval; for fewer than six values, this is their range, at lower confidence."""
    ordered, n = sorted(values), len(values)
    outside = 0.0  # probability that the median is outside the k-th smallest to the k-th largest value, from k = 0
    k = 0
    while k + 1 < (n + 1) // 2:
        tail = 2 * math.comb(n, k) / 2**n
        if outside + tail > 1 - CONFIDENCE:
            break
        outside, k = outside + tail, k + 1
    k = max(0, k - 1)
    return Median(statistics.median(ordered), ordered[k], ordered[n - 1 - k])


@dataclass(frozen=True)
class Timings:
    """Seconds of every function in each turn."""

    seconds: Mapping[str, list[float]]

    def ratio(self, subject: str, reference: str) -> Median:
        """How many times as fast as the reference a function is."""
        pairs = zip(self.seconds[subject], self.seconds[reference], strict=True)
        return median([theirs / ours for ours, theirs in pairs])

    def rate(self, subject: str, work: float) -> Median:
        """Units per second, if a call processes ``work`` units."""
        return median([work / seconds for seconds in self.seconds[subject]])


def compare(
    subjects: Mapping[str, Subject],
    *,
    repetitions: int = 15,
    clock: Callable[[], float] = cpu_seconds,
    warm_up: int = 1,
) -> Timings:
    """Call the functions in turns: each ``warm_up`` times without measuring, then ``repetitions`` times."""
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, repetitions):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            began = clock()
            subjects[name]()
            if turn >= 0:
                seconds[name].append(clock() - began)
    return Timings(seconds)
