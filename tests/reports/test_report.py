"""A report's cells and traces agree with the results of the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.reports import formats, paper_tables
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


@pytest.fixture
def imagenet(leave: Leave, tmp_path: Path) -> Callable[..., Report]:
    """A report of ECA Table 2's ResNet-50 with a finished run that left this result."""

    def made(**result: float) -> Report:
        leave(overrides("eca/2", "ResNet-50"), 0, 75.0, best_top1=75.5, **result)
        return reported("eca/2", "ResNet-50", tmp_path / "outputs")

    return made


@pytest.mark.parametrize(
    ("result", "text", "changed"),
    [
        ({"norm_images": 64, "world_size": 4}, "64 images (256 over 4 processes)", ""),
        ({"norm_images": 64, "world_size": 1}, "64 images (256 over 1 process in 4 parts)", ""),
        ({"world_size": 4}, "64 images (256 over 4 processes)", ""),  # of release 0.1.0
        (
            {"world_size": 1},
            "256 images (256 over 1 process), the paper's 64",
            "batch norm over 256 images (256 over 1 process), the paper's 64",
        ),
    ],
)
def test_batch_norm_over_other_images_than_the_papers_is_a_change_of_the_protocol(
    imagenet: Callable[..., Report], result: dict[str, float], text: str, changed: str
) -> None:
    made = imagenet(**result)
    assert f"batch norm's statistics over: {text} (1 run)" in remarks(made)
    assert made.chosen.changed == changed and ("CHANGED PROTOCOL" in made.title) == bool(changed)


def test_the_last_and_the_best_epoch_stand_side_by_side(imagenet: Callable[..., Report]) -> None:
    """Printed: 75.20. Neither epoch is called the paper's."""
    made = imagenet(world_size=4, val_images_per_s=900.0, written_images_per_s=700.0)
    contents = formats.grid(made)
    row = dict(zip(contents.headings, contents.rows[0], strict=True))
    assert row["top1 last epoch"] == "75.00 (n=1)" and row["top1 best epoch"] == "75.50 (n=1)"
    assert row["top1 last, best - printed"] == "-0.20, +0.30"
    assert row["infer_fps ours"].startswith("700") and row["infer_fps folded"].startswith("900")
    assert any("the papers do not say which one they print" in line for line in remarks(made))
    assert not any("as in the papers" in line for line in remarks(made))
