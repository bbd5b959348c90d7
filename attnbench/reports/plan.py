"""What it takes to run tables: the members, how they stand, their networks, and about how long it will be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.base.errors import Failure
from attnbench.config.configuration import Config
from attnbench.reports.counts import Sketch
from attnbench.reports.rows import Chosen, RowRun, distinct
from attnbench.runs.data import Look
from attnbench.runs.status import Standing, standing_of
from attnbench.training.recorder import read_metrics

EVALUATION = 1 / 3  # of a training step's time an image: the forward pass without the backward one


@dataclass(frozen=True)
class Speed:
    """What a probe measured: seconds for an image of a training step, and of how many images its steps were."""

    seconds: float
    batch: int


Probe = Callable[[Config], Speed]
Images = Callable[[Config], tuple[int, int] | None]  # of training and validation, None if unknown


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan: how it stands, and its network's learned numbers."""

    run: RowRun
    standing: Standing
    params: int

    @property
    def waits(self) -> bool:
        """Whether the run still has to be done."""
        return self.standing.state != "done"


@dataclass(frozen=True)
class Estimate:
    """About how long the missing runs take one after the other.

    Attributes:
        hours: of training and evaluation, without the reading of files.
        probed: networks that were measured.
        unknown: labels of rows whose number of images is not known.
    """

    hours: float
    probed: int
    unknown: list[str]


def planned_runs(chosen: Sequence[Chosen], sketch: Sketch) -> list[PlannedRun]:
    """Every run of some tables once, its network built without weights.

    Raises:
        ConfigError: a network that cannot be built, by its row's label.
    """
    sizes: dict[str, int] = {}
    planned, look = [], Look()
    for run in distinct(run for some in chosen for run in some.runs()):
        if run.config.hash not in sizes:
            sizes[run.config.hash] = _params(run, sketch)
        planned.append(PlannedRun(run, standing_of(run.config, look), sizes[run.config.hash]))
    return planned


def _params(run: RowRun, sketch: Sketch) -> int:
    try:
        model, _ = sketch(run.config)
    except Failure as failure:
        raise type(failure)(f"{run.label}: {failure.what}", failure.where, failure.todo) from None
    return sum(p.numel() for p in model.parameters())


def estimate(planned: Sequence[PlannedRun], probe: Probe, images: Images) -> Estimate:
    """Measure one row for each backbone with each attention, and count epochs and images."""
    speeds: dict[str, Speed] = {}
    seconds, unknown = 0.0, []
    for one in planned:
        sizes = images(one.run.config)
        if one.waits and sizes is None:
            unknown.append(one.run.label)
        elif one.waits and sizes is not None:
            kind = _kind(one.run.config)
            if kind not in speeds:
                speeds[kind] = probe(one.run.config)
            seconds += _epochs_left(one.run) * speeds[kind].seconds * (sizes[0] + EVALUATION * sizes[1])
    return Estimate(seconds / 3600, len(speeds), list(dict.fromkeys(unknown)))


def _kind(config: Config) -> str:
    """What is probed once: a backbone with an attention, on images of one size."""
    tree = config.tree
    what = [tree["backbone"], config.choices["attention"], config.choices["dataset"], tree.get("detector")]
    return json.dumps([*what, tree["runtime"]])


def _epochs_left(run: RowRun) -> int:
    epochs: int = run.config.tree["schedule"]["epochs"]
    return max(0, epochs - len(read_metrics(run.path / "metrics.jsonl")))


def as_dict(chosen: Sequence[Chosen], planned: Sequence[PlannedRun], time: Estimate | None) -> dict[str, Any]:
    """The form of ``attnbench table ID --plan --json``."""
    return {
        "tables": [{"id": c.table.id, "title": c.title, "changed_protocol": c.changed} for c in chosen],
        "members": [_member(one) for one in planned],
        "runs": len(planned),
        "to_run": sum(one.waits for one in planned),
        "estimated_hours": time and time.hours,
        "probed_networks": time and time.probed,
    }


def _member(one: PlannedRun) -> dict[str, Any]:
    run, stands = one.run, one.standing
    about = {"state": stands.state, "reason": stands.reason, "unseen": stands.unseen, "folder": str(run.path)}
    return {"label": run.label, "seed": run.seed, **about, "params": one.params, "config_hash": run.config.hash}


def lines(chosen: Sequence[Chosen], planned: Sequence[PlannedRun], time: Estimate | None) -> list[str]:
    """A plan as text: the titles, a line for each row, the sum and the estimate."""
    waiting = sum(one.waits for one in planned)
    written = [some.title for some in chosen]
    width = max((len(one.run.label) for one in planned), default=0)
    by_row: dict[str, list[PlannedRun]] = {}
    for one in planned:
        by_row.setdefault(one.run.config.hash, []).append(one)
    for of_row in by_row.values():
        first = of_row[0]
        written.append(f"  {first.run.label:{width}}  {first.params:>12,} parameters  {_states(of_row)}")
    written.append(f"{len(planned)} runs: {len(planned) - waiting} done, {waiting} to run")
    unseen = dict.fromkeys(one.standing.unseen for one in planned if one.standing.unseen)
    return [*written, *unseen, *_time(time)]


def _states(of_row: Sequence[PlannedRun]) -> str:
    """``done: seed 0, 1; not run: seed 2``."""
    by_state: dict[str, list[str]] = {}
    for one in of_row:
        stands = one.standing
        state = f"{stands.state} ({stands.reason})" if stands.reason else stands.state
        by_state.setdefault(state, []).append(str(one.run.seed))
    return "; ".join(f"{state}: seed {', '.join(seeds)}" for state, seeds in by_state.items())


def _time(time: Estimate | None) -> list[str]:
    if time is None:
        return ["no estimate of hours: nothing was measured"]
    about = f"a few training steps of {time.probed} networks measured; one run after the other, without reading files"
    hours = f"{time.hours:.0f}" if time.hours >= 10 else f"{time.hours:.2g}"
    written = [f"estimate: {hours} hours on this machine ({about})"]
    if time.unknown:
        written.append(f"not in the estimate, number of images unknown: {', '.join(time.unknown)}")
    return written
