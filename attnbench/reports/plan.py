"""A plan for running tables: the runs, their states, their networks' sizes, and an estimate of the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.base.errors import Failure
from attnbench.config.configuration import Config
from attnbench.reports.counts import Sketch
from attnbench.reports.rows import Chosen, RowRun, in_order
from attnbench.runs.data import DataCheck
from attnbench.runs.status import RunStatus, run_status
from attnbench.training.recorder import read_metrics

EVALUATION = 1 / 3  # evaluation time over training time of an image: a forward pass without the backward pass


@dataclass(frozen=True)
class Speed:
    """What a probe measured: seconds of a training step for each image, and the batch size of its steps."""

    seconds: float
    batch: int


Probe = Callable[[Config], Speed]
Images = Callable[[Config], tuple[int, int] | None]  # numbers of training and validation images; None if unknown


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan, with its state and the number of parameters of its network."""

    run: RowRun
    status: RunStatus
    params: int

    @property
    def waits(self) -> bool:
        """Whether the run is still to be done."""
        return self.status.state != "done"


@dataclass(frozen=True)
class Estimate:
    """An estimate of how long the missing runs take, one after the other.

    Attributes:
        hours: the time of training and evaluation, without reading files.
        probed: how many networks were measured.
        unknown: labels of rows whose number of images is unknown.
    """

    hours: float
    probed: int
    unknown: list[str]


def planned_runs(chosen: Sequence[Chosen], sketch: Sketch) -> list[PlannedRun]:
    """Plan every run of some tables once, after the run that it starts from; each network is built without weights.

    Raises:
        ConfigError: a network cannot be built; the message names the row.
    """
    sizes: dict[str, int] = {}
    planned, data_check = [], DataCheck()
    for run in (run for group in in_order(run for some in chosen for run in some.runs()) for run in group):
        if run.config.hash not in sizes:
            sizes[run.config.hash] = _params(run, sketch)
        planned.append(PlannedRun(run, run_status(run.config, data_check), sizes[run.config.hash]))
    return planned


def _params(run: RowRun, sketch: Sketch) -> int:
    try:
        model, _ = sketch(run.config)
    except Failure as failure:
        raise type(failure)(f"{run.label}: {failure.what}", failure.where, failure.todo) from None
    return sum(p.numel() for p in model.parameters())


def estimate(planned: Sequence[PlannedRun], probe: Probe, images: Images) -> Estimate:
    """Estimate the time of the missing runs from their epochs and images.

    Each pair of backbone and attention is measured once.
    """
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
    """A key that is equal for runs with the same backbone, attention, data and runtime, which are probed once."""
    tree = config.tree
    backbone = tree["backbone"] | {"weights": None}
    what = [backbone, config.choices["attention"], config.choices["dataset"], tree.get("detector")]
    return json.dumps([*what, tree["runtime"]])


def _epochs_left(run: RowRun) -> int:
    epochs: int = run.config.tree["schedule"]["epochs"]
    return max(0, epochs - len(read_metrics(run.path / "metrics.jsonl")))


def as_dict(chosen: Sequence[Chosen], planned: Sequence[PlannedRun], time: Estimate | None) -> dict[str, Any]:
    """The JSON object of ``attnbench table ID --plan --json``."""
    return {
        "tables": [{"id": c.table.id, "title": c.title, "changed_protocol": c.changed} for c in chosen],
        "members": [_member(one) for one in planned],
        "runs": len(planned),
        "to_run": sum(one.waits for one in planned),
        "estimated_hours": time and time.hours,
        "probed_networks": time and time.probed,
    }


def _member(one: PlannedRun) -> dict[str, Any]:
    run, status = one.run, one.status
    about = {"state": status.state, "reason": status.reason, "unseen": status.unseen, "folder": str(run.path)}
    about["starts_from"] = str(run.start.path) if run.start else run.config.tree["backbone"].get("weights")
    return {"label": run.label, "seed": run.seed, **about, "params": one.params, "config_hash": run.config.hash}


def lines(chosen: Sequence[Chosen], planned: Sequence[PlannedRun], time: Estimate | None) -> list[str]:
    """A plan as lines of text: the titles, a line for each row, the totals and the estimate."""
    waiting = sum(one.waits for one in planned)
    written = [some.title for some in chosen]
    width = max((len(one.run.label) for one in planned), default=0)
    by_row: dict[str, list[PlannedRun]] = {}
    for one in planned:
        by_row.setdefault(one.run.config.hash, []).append(one)
    for of_row in by_row.values():
        first = of_row[0]
        written.append(f"  {first.run.label:{width}}  {first.params:>12,} parameters  {_states(of_row)}{_start(first)}")
    written.append(f"{len(planned)} runs: {len(planned) - waiting} done, {waiting} to run")
    unseen = dict.fromkeys(one.status.unseen for one in planned if one.status.unseen)
    return [*written, *unseen, *_time(time)]


def _start(one: PlannedRun) -> str:
    """From which weights a row's runs start; empty for random or stock ones."""
    given = one.run.start.label if one.run.start else one.run.config.tree["backbone"].get("weights")
    return f"; starts from {given}" if given else ""


def _states(of_row: Sequence[PlannedRun]) -> str:
    """A row's seeds by state, such as ``done: seed 0, 1; not run: seed 2``."""
    by_state: dict[str, list[str]] = {}
    for one in of_row:
        status = one.status
        state = f"{status.state} ({status.reason})" if status.reason else status.state
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
