"""Claims of benchmarks and their reports. ``attnbench.base.benchmark`` does the measuring."""

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
    """The claim that ``ours`` is at least ``at_least`` times as fast as ``reference``.

    Attributes:
        title: what is measured.
        unit: the unit of speed, such as ``images per CPU-second``.
        work: how many images, starts or members one call processes.
        setting: data and settings of the measurement, for the reader.
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
        """The result for this claim, as one row of a report."""
        setting = f" ({self.setting})" if self.setting else ""
        reached = timings.ratio(self.ours, self.reference)
        text = f"{self.title}{setting}: {self.ours} / {self.reference}, {self.unit}"
        return Finding(text, f">= {self.at_least}", str(reached), self.met(timings))


@dataclass(frozen=True)
class Finding:
    """The result for one claim, as text for ``docs/results/speed.md``."""

    claim: str
    bar: str
    reached: str
    met: bool


def machine() -> dict[str, Any]:
    """The machine and the versions with which the numbers were measured."""
    from attnbench.runs import environment

    about = {key: value for key, value in environment.machine().items() if key not in ("host", "command")}
    return {**about, "cores": cores()}


def findings(found: Sequence[Finding], repetitions: int, **more: Any) -> str:
    """A script's findings as JSON, with the machine and further keys."""
    lines = [asdict(one) for one in found]
    return json.dumps({"findings": lines, "repetitions": repetitions, "machine": machine(), **more}, indent=2)


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def report(claim: Claim, timings: Timings, as_json: bool) -> None:
    """Print a claim and its measurements, with a line for each side."""
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
