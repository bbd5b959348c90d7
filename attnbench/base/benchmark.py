"""Measuring one thing against another on a machine that is never quiet.

Subjects take turns in one process, each first as often as any other, so that whatever slows the machine down slows all
of them. What is reported are ratios of calls of the same turn: their median, and the interval that holds the median of
many more turns with a probability of at least 95 % (by order statistics, so no distribution is assumed).
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
    """CPU time of this process and of its children that have ended, such as data workers."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


wall_seconds = time.perf_counter


@dataclass(frozen=True)
class Median:
    """A median and its interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}..{self.high:.3g})"


def median(values: Sequence[float]) -> Median:
    """The median with its interval; of fewer than six values the interval is their range, and holds less."""
    ordered, n = sorted(values), len(values)
    outside = 0.0  # of the interval from the k-th smallest to the k-th largest value, k counted from 0
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
    """Seconds of every subject, turn by turn."""

    seconds: Mapping[str, list[float]]

    def ratio(self, subject: str, reference: str) -> Median:
        """How many times as fast as the reference a subject is."""
        pairs = zip(self.seconds[subject], self.seconds[reference], strict=True)
        return median([theirs / ours for ours, theirs in pairs])

    def rate(self, subject: str, work: float) -> Median:
        """Units a second, for ``work`` units a call."""
        return median([work / seconds for seconds in self.seconds[subject]])


def compare(
    subjects: Mapping[str, Subject],
    *,
    repetitions: int = 15,
    clock: Callable[[], float] = cpu_seconds,
    warm_up: int = 1,
) -> Timings:
    """Call the subjects in turn, ``repetitions`` times each after ``warm_up`` calls that do not count."""
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
