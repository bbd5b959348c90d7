"""A report's cells and traces agree with the results of the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.reports import paper_tables
from attnbench.reports.composer import Composer
from attnbench.reports.report import Report, as_dict, remarks, report
from attnbench.reports.rows import choose
from tests.figure_fixtures import Leave


def reported(name: str, label: str, outputs: Path) -> Report:
    """A report of one row of a table, without its counts."""
    table = paper_tables.load(name)
    rows = [row for row in table.rows if row.label == label]
    return report(choose(table, rows, [0], Composer([f"paths.outputs={outputs}"])), lambda row: {}, {})


def overrides(name: str, label: str) -> list[str]:
    (row,) = [row for row in paper_tables.load(name).rows if row.label == label]
    assert row.overrides is not None
    return row.overrides


# Every measure of a detection run, each with a different value.
MEASURES = {"mAP": 41.0, "best_mAP": 42.0, "AP": 21.0, "best_AP": 22.0, "AP50": 31.0}


@pytest.mark.parametrize(
    ("name", "label", "column", "value", "best"),
    [
        ("sb/4", "SB x0.35", "mAP", 41.0, 42.0),
        ("eca/4", "Faster R-CNN ResNet-50", "AP", 21.0, 22.0),
        ("eca/4", "Faster R-CNN ResNet-50", "AP50", 31.0, None),
    ],
)
def test_a_cell_has_the_last_and_the_best_epochs_value_of_its_own_measure(
    leave: Leave, tmp_path: Path, name: str, label: str, column: str, value: float, best: float | None
) -> None:
    (row,) = [row for row in paper_tables.load(name).rows if row.label == label]
    composed = Composer([f"paths.outputs={tmp_path}/outputs"]).row(row)
    start = composed.tree["backbone"]["weights"] if composed else None
    leave(
        [*overrides(name, label), *([f"backbone.weights={start}"] if start else [])],
        0,
        11.0,
        best_top1=12.0,
        **MEASURES,
    )
    cell = reported(name, label, tmp_path / "outputs").lines[0].cells[column]
    assert cell.ours == value
    assert (cell.best and cell.best.mean) == best
    (trace,) = cell.runs
    assert (trace.value, trace.best) == (value, best)


def test_a_trace_says_how_long_its_run_was_and_what_made_it(leave: Leave, tmp_path: Path) -> None:
    folder = leave(overrides("sb/4", "SB x0.35"), 0, 11.0, epochs=37, **MEASURES)
    made = reported("sb/4", "SB x0.35", tmp_path / "outputs")
    (trace,) = made.lines[0].cells["mAP"].runs
    assert (trace.folder, trace.seed, trace.state, trace.epochs) == (str(folder), 0, "done", 37)
    assert (trace.commit, trace.device) == ("c0ffee", "a card")
    assert as_dict(made)["rows"][0]["cells"]["mAP"]["runs"][0]["epochs"] == 37
    assert "epochs: 37 (1 run)" in remarks(made)
