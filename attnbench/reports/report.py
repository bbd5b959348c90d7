"""A table's results beside the printed numbers. A report reads the results of runs; it never trains."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from attnbench.config.configuration import Config
from attnbench.data.dataset import CHANGED
from attnbench.reports import counts
from attnbench.reports.paper_tables import Row
from attnbench.reports.rows import Chosen, baseline, seeded, seeds_there
from attnbench.reports.statistics import Paired, Spread, paired, spread
from attnbench.runs import record_faults
from attnbench.runs.data import DataCheck
from attnbench.runs.status import RunStatus, run_status
from attnbench.training.metrics.titles import TITLES

# The key in result.json of each column that a run measures. Accuracy is the last epoch's.
MEASURED = {**{name: name for name in TITLES}, "train_fps": "images_per_s", "infer_fps": "written_images_per_s"}
FOLDED = {"infer_fps": "val_images_per_s"}  # the same with folded norms, shown beside it
BEST = {"top1": "best_top1", "AP": "best_AP", "mAP": "best_mAP"}
COMPARED = ("top1", "top5", "AP", "AP50", "mAP", "mask_AP")  # columns with paired differences

EPOCHS = (
    "the last and the best epoch stand side by side: the papers do not say which one they print. The public scripts "
    "that they name keep the best epoch, which is chosen on the images that it is measured on"
)
STATISTICS = (
    "our ± is the sample standard deviation over seeds, with n - 1; the papers do not say which one they print. "
    "Differences to a baseline are paired by seed and of the last epoch, with a 95 % confidence interval from "
    "Student's t distribution"
)
SPEEDS = (
    "train_fps is the speed of our runs' training, input included. infer_fps is that of the network as it is written, "
    "on images in memory; folded, that of our evaluation, with norms folded into convolutions and input included. "
    "Printed speeds are from another device and do not compare"
)


TALLIED = 4  # at most so many commits, devices or data sources are named in a line
PAPERS = ", the paper's "  # before the number of images of a batch norm's statistics, if it is another one


@dataclass(frozen=True)
class Trace:
    """Where a value comes from: a run's folder, seed, state, values, commit, device, configuration, data and weights.

    ``weights`` are the initial ones, empty for random or stock weights; ``norm`` says over how many images batch norm
    computed its statistics.
    """

    folder: str
    seed: int
    state: str
    reason: str = ""
    value: float | None = None
    best: float | None = None
    epochs: int | None = None
    commit: str | None = None
    device: str | None = None
    config_hash: str = ""
    data: str = ""
    weights: str = ""
    norm: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a report.

    Attributes:
        printed, printed_std: the paper's mean and deviation, as text.
        unit: the unit of the printed value and of all numbers here, except ``ours`` of a count.
        ours: the mean of a measured column, or the exact count in plain units.
        std, n: standard deviation and number of the measured values.
        best: mean, std and n over the runs' best epochs.
        folded: mean, std and n of a speed with folded norms.
        difference: ours - printed, of the last epoch.
        best_difference: the same of the best epochs.
        state: ``counted``, ``done`` if every seed has a value, or else which seeds lack one and why.
        note: the row's note on this cell.
        runs: a trace for each seed.
        per: the size of ``unit`` in plain units.
        matched: whether a count rounds to the printed value.
    """

    printed: str = ""
    printed_std: str = ""
    unit: str = ""
    ours: float | int | None = None
    std: float | None = None
    n: int = 0
    best: Spread | None = None
    folded: Spread | None = None
    difference: float | None = None
    best_difference: float | None = None
    state: str = ""
    note: str = ""
    runs: list[Trace] = field(default_factory=list)
    per: float = 1.0
    matched: bool | None = None


@dataclass(frozen=True)
class Line:
    """A row of a report, with its cells and its differences to the baseline, both by column."""

    label: str
    overrides: list[str] | None
    cells: dict[str, Cell]
    baseline: str | None = None
    paired: dict[str, Paired] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The results of a table's runs so far.

    Attributes:
        unseen: why the data of some runs could not be compared with those that a run would open now, and files of runs
            that cannot be read.
    """

    chosen: Chosen
    lines: list[Line]
    unseen: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The table's title, with all changes to the paper's setting."""
        return self.chosen.title

    @property
    def traces(self) -> list[tuple[str, Trace]]:
        """Each run once, with its row's label and its value of the column that rows are compared by."""
        found: dict[tuple[str, int], tuple[str, Trace]] = {}
        for line in self.lines:
            for name in sorted(line.cells, key=lambda name: name not in COMPARED):
                for trace in line.cells[name].runs:
                    found.setdefault((line.label, trace.seed), (line.label, trace))
        return list(found.values())


Statuses = dict[int, tuple[Path, RunStatus]]  # by seed


def report(
    chosen: Chosen, counted: Callable[[Row], dict[str, counts.CountedCell]], failed: Mapping[Path, str]
) -> Report:
    """Make a report from the results that exist.

    Args:
        chosen: the rows and seeds.
        counted: returns the cells of parameters and operations of a row.
        failed: by run folder, the reasons of failures that could not be written to that folder.
    """
    lines, data_check = [], DataCheck()
    unseen: dict[str, None] = {}
    for row, composed in chosen.rows:
        found = _statuses(chosen, composed, failed, data_check)
        unseen |= {status.unseen: None for _, status in found.values() if status.unseen}
        faults = ((path, record_faults.fault_of_file(path / "env.json")) for path, _ in found.values())
        unseen |= {f"{path}: {fault}": None for path, fault in faults if fault}
        cells = _cells(chosen, row, composed, found, counted(row))
        label = baseline(chosen.table, row)
        other = _statuses(chosen, chosen.baselines.get(label or ""), {}, data_check)
        differences = {c: paired(_values(found, key), _values(other, key)) for c, key in MEASURED.items() if c in cells}
        kept = {c: d for c, d in differences.items() if d and c in COMPARED}
        lines.append(Line(row.label, row.overrides, cells, label, kept, row.note.get("*", "")))
    made = Report(chosen, lines, list(unseen))
    differ = [f"data {what}" for _, trace in made.traces if (what := changed_images(trace.data))]
    differ += [f"batch norm over {trace.norm}" for _, trace in made.traces if PAPERS in trace.norm]
    changed = ", ".join(filter(None, [chosen.changed, *dict.fromkeys(differ)]))
    return Report(replace(chosen, changed=changed), lines, list(unseen))


def changed_images(source: str) -> str:
    """How a data source's images differ from those of the paper's setting; empty if they do not."""
    return source.partition(CHANGED)[2].partition(", fingerprint")[0]


def _statuses(chosen: Chosen, composed: Config | None, failed: Mapping[Path, str], data_check: DataCheck) -> Statuses:
    """The states of a row's runs by seed: the chosen seeds and, unless they were given, all other finished ones."""
    if composed is None:
        return {}
    seeds = chosen.seeds if chosen.exact else sorted({*chosen.seeds, *seeds_there(composed)})
    runs = {seed: seeded(composed, seed) for seed in seeds}
    found = {seed: (run.run_folder, run_status(run, data_check)) for seed, run in runs.items()}
    for seed, (path, status) in found.items():
        if path in failed and status.state != "done":
            found[seed] = (path, RunStatus("failed", failed[path]))
    return {seed: f for seed, f in found.items() if seed in chosen.seeds or f[1].state == "done"}


def _values(found: Statuses, key: str) -> dict[int, float]:
    values = {seed: status.result.get(key) for seed, (_, status) in found.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _cells(
    chosen: Chosen, row: Row, composed: Config | None, found: Statuses, counted: Mapping[str, counts.CountedCell]
) -> dict[str, Cell]:
    cells = {}
    for name, column in chosen.table.columns.items():
        unit = row.unit.get(name, column.unit)
        if name in counted:
            cells[name] = _count(counted[name], row.per.get(name, column.per))
        elif not column.counter:
            cells[name] = _measurement(row, composed, name, unit, found, len(chosen.seeds))
    return cells


def _count(cell: counts.CountedCell, per: float) -> Cell:
    printed = float(cell.printed) if counts.is_numeral(cell.printed) else None
    difference = cell.ours / per - printed if cell.ours is not None and printed is not None else None
    return Cell(
        cell.printed, unit=cell.unit, ours=cell.ours, difference=difference, state="counted", note=cell.note, per=per,
        matched=cell.matched,
    )  # fmt: skip


def _measurement(row: Row, composed: Config | None, name: str, unit: str, found: Statuses, wanted: int) -> Cell:
    note = " ".join(filter(None, (row.note.get(key) for key in (name, f"{name}_std"))))
    empty = Cell(row.printed.get(name, ""), row.printed.get(f"{name}_std", ""), unit, note=note)
    if name not in MEASURED:
        return replace(empty, state="not measured by a run")
    if row.overrides is None:
        return replace(empty, state="quoted only")
    values = _values(found, MEASURED[name])
    ours = spread(list(values.values()))
    best = spread(list(_values(found, BEST[name]).values())) if name in BEST else None
    printed = float(empty.printed) if counts.is_numeral(empty.printed) else None
    return replace(
        empty,
        ours=ours.mean if ours else None,
        std=ours.std if ours else None,
        n=len(values),
        best=best,
        folded=spread(list(_values(found, FOLDED[name]).values())) if name in FOLDED else None,
        difference=ours.mean - printed if ours and printed is not None else None,
        best_difference=best.mean - printed if best and printed is not None else None,
        state=_gaps(found, values, wanted),
        runs=[_trace(composed, seed, path, status, name) for seed, (path, status) in found.items() if composed],
    )


def _gaps(found: Statuses, values: Mapping[int, float], wanted: int) -> str:
    """``done``, ``not run``, or which seeds have a value and the states of the others."""
    if values and len(values) == len(found):
        return "done"
    others: dict[str, list[int]] = defaultdict(list)
    for seed, (_, status) in found.items():
        if seed not in values:
            state = status.state if status.state != "done" else "nothing measured"
            others[f"{state}: {status.reason}" if status.reason else state].append(seed)
    if not values and set(others) <= {"not run"}:
        return "not run"
    there = [f"{len(values)} of {max(wanted, len(found))} seeds: {_listed(list(values))}"] if values else []
    return "; ".join([*there, *(f"{what} (seed {_listed(seeds)})" for what, seeds in others.items())])


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _trace(config: Config, seed: int, path: Path, status: RunStatus, name: str) -> Trace:
    environment = record_faults.environment(path)
    result = status.result
    start = result.get("weights", {})
    return Trace(
        str(path),
        seed,
        status.state,
        status.reason,
        result.get(MEASURED[name]),
        result.get(BEST.get(name, "")),
        result.get("epochs"),
        record_faults.text_of(environment, "commit"),
        record_faults.text_of(environment, "device"),
        path.parent.name.rpartition("-")[2],
        source_of(result),
        " ".join(filter(None, [start.get("from", ""), start.get("sha256", "")[:8]])),
        norm_of(config, result) if result else "",
    )


def norm_of(config: Config, result: Mapping[str, Any]) -> str:
    """Over how many images batch norm computed its statistics in a finished run, and the paper's number if it differs.

    The paper's is ``runtime.norm_batch`` of the row's experiment, the share of one of its devices.
    """
    if "norm_images" in result and result["norm_images"] is None:
        return "frozen statistics"
    processes = result.get("world_size", 1)
    accumulate = config.tree["schedule"].get("accumulate", 1)
    images = result.get("norm_images") or config.tree["batch_size"] // processes // accumulate
    wanted = config.tree["runtime"]["norm_batch"]
    how = f"{config.tree['batch_size']} over {processes} {'process' if processes == 1 else 'processes'}"
    parts = max(1, config.tree["batch_size"] // processes // images)
    how += f" in {parts} parts" if parts > 1 else ""
    return f"{images} images ({how})" + (f"{PAPERS}{wanted}" if wanted not in (None, images) else "")


def source_of(result: Mapping[str, Any]) -> str:
    """A run's data source and the start of its fingerprint, which differ for runs on different data."""
    data = result.get("data", {})
    source, fingerprint = data.get("source", ""), data.get("fingerprint", "")
    return f"{source}, fingerprint {fingerprint[:8]}" if fingerprint else source


def as_dict(made: Report) -> dict[str, Any]:
    """The JSON object of ``attnbench table ID --json``."""
    table = made.chosen.table
    return {
        "id": table.id,
        "title": made.title,
        "source": table.source,
        "changed_protocol": made.chosen.changed,
        "seeds": made.chosen.seeds,
        "paper_seeds": table.seeds,
        "notes": table.notes,
        "remarks": remarks(made),
        "rows": [_row(line) for line in made.lines],
    }


def _row(line: Line) -> dict[str, Any]:
    cells = {}
    for name, cell in line.cells.items():
        about = asdict(cell)
        about.pop("per")
        if cell.state != "counted":
            about.pop("matched")
            about["mean"] = cell.ours
        cells[name] = about
    compared = {
        name: {"mean": d.mean, "ci95": None if d.low is None else [d.low, d.high], "n": d.n, "seeds": d.seeds}
        for name, d in line.paired.items()
    }
    differences = {"baseline": line.baseline, **compared} if line.baseline else {}
    overrides = line.overrides
    return {"label": line.label, "overrides": overrides, "cells": cells, "paired": differences, "note": line.note}


def remarks(made: Report) -> list[str]:
    """The lines below a report: how much was run, by which commits, on which data, and how to read the numbers."""
    lines = coverage(made)
    if made.chosen.changed:
        lines.insert(0, f"CHANGED PROTOCOL: {made.chosen.changed}; differences to printed numbers mean nothing")
    columns = made.chosen.table.columns
    if "train_fps" in columns:
        lines.append(SPEEDS)
    lines += [f"{name}: not measured by a run" for name, c in columns.items() if not c.counter and name not in MEASURED]
    return [*lines, *made.unseen, EPOCHS, STATISTICS]


def coverage(made: Report) -> list[str]:
    """Lines on how much of a report was run, with the commits, devices, data and epochs of its runs."""
    traces = [trace for _, trace in made.traces]
    done = [trace for trace in traces if trace.state == "done"]
    paper, seeds = made.chosen.table.seeds, made.chosen.seeds
    lines = [f"runs: {len(done)} done of {len(traces)}; seeds {_listed(seeds)} (the paper: {paper} a row)"]
    for what, values in (
        ("commits", [trace.commit or "unknown" for trace in done]),
        ("devices", [trace.device or "unknown" for trace in done]),
        ("data sources", [trace.data or "unknown" for trace in done]),
        ("epochs", [str(trace.epochs) for trace in done]),
        ("batch norm's statistics over", [trace.norm for trace in done if trace.norm]),
        ("initial weights", [trace.weights for trace in done if trace.weights]),
    ):
        if values:
            lines.append(f"{what}: {tally(values)}")
    return lines


def tally(values: Iterable[str]) -> str:
    """The most frequent values with their numbers of runs, such as ``decaf (4 runs); c0ffee (1 run)``."""
    counts = Counter(values)
    shown = counts.most_common(TALLIED if len(counts) > TALLIED + 1 else None)
    rest = [f"and {len(counts) - TALLIED} more ({_runs(counts.total() - sum(n for _, n in shown))})"]
    return "; ".join([f"{value} ({_runs(n)})" for value, n in shown] + (rest if len(shown) < len(counts) else []))


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
