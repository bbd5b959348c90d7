"""What a benchmark claims, and how it says what came out; the measuring is ``attnbench.base.benchmark``'s."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attnbench.base.benchmark import Timings
from attnbench.base.cores import cores


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

    def met(self, timings: Timings) -> bool:
        """Whether the median reaches the bar."""
        return timings.ratio(self.ours, self.reference).median >= self.at_least

    def finding(self, timings: Timings) -> Finding:
        """The claim as one line of a report."""
        setting = f" ({self.setting})" if self.setting else ""
        reached = timings.ratio(self.ours, self.reference)
        text = f"{self.title}{setting}: {self.ours} / {self.reference}, {self.unit}"
        return Finding(text, f">= {self.at_least}", str(reached), self.met(timings))


@dataclass(frozen=True)
class Finding:
    """What came of one claim, in words for ``docs/results/speed.md``."""

    claim: str
    bar: str
    reached: str
    met: bool


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from attnbench.runs.run import environment

    about = {key: value for key, value in environment().items() if key not in ("host", "command")}
    return {**about, "cores": cores()}


def findings(found: Sequence[Finding], repetitions: int, **more: Any) -> str:
    """JSON of a script's findings, with the machine and whatever else it says."""
    lines = [asdict(one) for one in found]
    return json.dumps({"findings": lines, "repetitions": repetitions, "machine": machine(), **more}, indent=2)


def arguments(about: str) -> argparse.ArgumentParser:
    """The words that every script takes."""
    words = argparse.ArgumentParser(description=about)
    words.add_argument("--repetitions", type=int, default=15)
    words.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return words


def report(claim: Claim, timings: Timings, as_json: bool) -> None:
    """Print a claim with what was measured, every subject as a line."""
    rows: dict[str, dict[str, Any]] = {
        name: {
            "rate": asdict(timings.rate(name, claim.work)),
            "ratio": asdict(timings.ratio(name, claim.reference)),
        }
        for name in timings.seconds
    }
    if as_json:
        repetitions = len(next(iter(timings.seconds.values())))
        about = {**asdict(claim), "met": claim.met(timings)}
        print(findings([claim.finding(timings)], repetitions, **about, subjects=rows))
        return
    print(f"{claim.title} ({claim.setting})")
    width = max(map(len, rows))
    print(f"{'':{width}}  {claim.unit:>28}  {'times the reference':>24}")
    for name in rows:
        rate, ratio = timings.rate(name, claim.work), timings.ratio(name, claim.reference)
        print(f"{name:{width}}  {rate!s:>28}  {ratio!s:>24}")
    reached = timings.ratio(claim.ours, claim.reference)
    print(f"claimed: {claim.at_least}; {claim.ours}: {reached}; {'met' if claim.met(timings) else 'NOT MET'}")
    print("torch {torch}, {cores} cores, commit {commit}".format(**machine()))
