"""Measuring one thing against another on a machine that is never quiet.

Subjects take turns in one process, each first as often as any other, so that whatever slows the machine down slows all
of them. What is reported are ratios of calls of the same turn: their median, and the interval that holds the median of
many more turns with a probability of at least 95 % (by order statistics, so no distribution is assumed).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
class Comparison:
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
) -> Comparison:
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
    return Comparison(seconds)


@dataclass(frozen=True)
class Claim:
    """What a script shows: ``ours`` is at least so many times as fast as ``reference``.

    Attributes:
        unit: what is counted, a second: ``images per CPU-second``.
        work: units in one call of a subject.
        setting: on which data and how, for the reader.
    """

    title: str
    ours: str
    reference: str
    at_least: float
    unit: str
    work: float
    setting: str = ""

    def met(self, comparison: Comparison) -> bool:
        """Whether the median reaches the bar."""
        return comparison.ratio(self.ours, self.reference).median >= self.at_least


def arguments(about: str) -> argparse.ArgumentParser:
    """The words that every script takes."""
    words = argparse.ArgumentParser(description=about)
    words.add_argument("--repetitions", type=int, default=15)
    words.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return words


def report(claim: Claim, comparison: Comparison, as_json: bool) -> None:
    """Print a claim with what was measured, every subject as a line."""
    from attnbench.run import environment

    machine = {key: value for key, value in environment().items() if key not in ("host", "command")}
    machine["cores"] = len(os.sched_getaffinity(0))
    rows: dict[str, dict[str, Any]] = {
        name: {
            "rate": asdict(comparison.rate(name, claim.work)),
            "ratio": asdict(comparison.ratio(name, claim.reference)),
        }
        for name in comparison.seconds
    }
    if as_json:
        repetitions = len(next(iter(comparison.seconds.values())))
        about = {**asdict(claim), "met": claim.met(comparison), "repetitions": repetitions}
        print(json.dumps({**about, "subjects": rows, "machine": machine}, indent=2))
        return
    print(f"{claim.title} ({claim.setting})")
    width = max(map(len, rows))
    print(f"{'':{width}}  {claim.unit:>28}  {'times the reference':>24}")
    for name in rows:
        rate, ratio = comparison.rate(name, claim.work), comparison.ratio(name, claim.reference)
        print(f"{name:{width}}  {rate!s:>28}  {ratio!s:>24}")
    reached = comparison.ratio(claim.ours, claim.reference)
    print(f"claimed: {claim.at_least}; {claim.ours}: {reached}; {'met' if claim.met(comparison) else 'NOT MET'}")
    print(f"torch {machine['torch']}, {machine['cores']} cores, commit {machine['commit']}")
