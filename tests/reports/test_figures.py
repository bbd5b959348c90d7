"""Figures: they draw the numbers of tables and runs, and show which values are missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnbench.base.errors import ConfigError, Failure
from attnbench.cli import figure, main
from attnbench.config import composition, hydra_state, option_files
from attnbench.models import factory
from attnbench.reports.figures import drawing, paper_figures, saving
from attnbench.reports.figures.canvas import PRINTED
from tests.figure_fixtures import Draw, Leave, legend, shown_text

LAMBDAS = ["0.01", "0.05", "0.1", "0.5", "1.0"]


def curve(axes: Axes, number: int) -> tuple[list[float], list[float], list[float]]:
    """x, means and deviations of the n-th curve with error bars."""
    line, _, (bars,) = error_bars(axes, number).lines
    assert isinstance(bars, LineCollection)
    halves = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments() if len(segment)]
    return [*np.asarray(line.get_xdata())], [*np.asarray(line.get_ydata())], halves


def error_bars(axes: Axes, number: int) -> ErrorbarContainer:
    """The n-th curve with error bars."""
    container = axes.containers[number]
    assert isinstance(container, ErrorbarContainer)
    return container


def crosses(axes: Axes) -> list[tuple[str, float]]:
    """Colour and x of the marks of missing values."""
    marks = [line for line in axes.lines if line.get_marker() == "x"]
    return [(to_hex(line.get_color()), x) for line in marks for x in np.asarray(line.get_xdata())]


# The figures as data


def raw(table: str) -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((option_files.folder() / "table" / f"{table}.yaml").read_text("utf-8"))
    return {row["label"]: row for row in content["rows"]}


EXPECTED = {
    "eca/1",
    "eca/4",
    "eca/6",
    "eca/7",
    "sb/placement",
    "sb/lambda",
    "sb/gate",
    "sb/learned_lambda",
    "runs/plane",
}


def test_the_list_has_every_figure_of_the_issue() -> None:
    assert set(paper_figures.ids()) >= EXPECTED
    assert paper_figures.ids()[0] == "eca/1" and paper_figures.ids()[-1] == "runs/plane"


@pytest.mark.parametrize("name", paper_figures.ids())
def test_every_row_of_a_figure_is_there_and_composes(name: str) -> None:
    figure = paper_figures.load(name)
    assert figure.kind in drawing.KINDS
    tables = {label: row for table in figure.tables for label, row in raw(table).items()}
    own = {row.label: row for row in figure.rows}
    for row in figure.table.rows:
        if row.label not in own:  # those of tables are composed by the tables' tests
            assert (row.overrides, row.printed) == (tables[row.label]["overrides"], tables[row.label]["printed"])
    with hydra_state.prepared():
        assert all(composition.compose(row.overrides or []) for row in own.values())
    assert set(own) <= set(figure.labels())


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("sb/placement", "sb/5"),
        ("sb/width", "sb/6"),
        ("sb/dropout", "sb/7"),
        ("sb/lambda", "sb/8"),
        ("sb/gate", "sb/9"),
    ],
)
def test_a_figure_shows_every_row_of_its_table(name: str, table: str) -> None:
    assert set(paper_figures.load(name).labels()) >= set(raw(table))


def test_no_number_is_copied_into_a_figure() -> None:
    for name in paper_figures.ids():
        content = yaml.safe_load((paper_figures.folder() / f"{name}.yaml").read_text("utf-8"))
        assert not any("printed" in row or "top1" in row for row in content.get("rows", []))
    rows = {row.label: row.printed for row in paper_figures.load("eca/4").rows}
    assert rows["ECA ResNet-50 k=3"]["top1"] == raw("eca/1")["ECA"]["printed"]["top1"]
    assert rows["ECA ResNet-101 k=adaptive"]["top1"] == raw("eca/2")["ECA-Net ResNet-101"]["printed"]["top1"]
    assert not rows["ECA ResNet-50 k=7"]


# Curves

SCALE = ("dataset=digits", "epochs=2")
SB = ["experiment=sb_cifar10", "backbone.width=0.35", "attention=sb", "dataset=digits", "schedule.epochs=2"]


def test_curves_are_the_printed_cells_and_our_means(draw: Draw, leave: Leave) -> None:
    ours = {"0.01": [40.0, 44.0], "0.1": [50.0, 51.0], "1.0": [30.0]}
    for value, scores in ours.items():
        for seed, top1 in enumerate(scores):
            leave([*SB, f"attention.lambda_init={value}"], seed, top1)
    leave([*SB, "attention.lambda_init=0.5"], 0, None)

    picture, _ = draw("sb/lambda", *SCALE, seeds=[0, 1])
    printed, here = picture.axes
    cells = [raw("sb/8")[f"SB x0.35 lambda {value}"]["printed"] for value in LAMBDAS]
    _, means, deviations = curve(printed, 0)
    assert means == [float(cell["top1"]) for cell in cells]
    assert deviations == pytest.approx([float(cell["top1_std"]) for cell in cells])
    assert len(printed.containers) == 4

    x, means, deviations = curve(here, 0)
    assert means == [mean(scores) for scores in ours.values()]
    assert deviations == pytest.approx([stdev([40.0, 44.0]), stdev([50.0, 51.0])])  # a single seed has no bar
    assert x == pytest.approx([float(value) for value in ours], rel=0.08)
    assert here.get_xscale() == "log"
    blue = to_hex(error_bars(here, 0).lines[0].get_color())
    assert [at for colour, at in crosses(here) if colour == blue] == pytest.approx([0.05, 0.5], rel=0.08)
    assert len(crosses(here)) == 2 + 3 * 5
    for note in ("5 done of 40", "1 of 2 seeds: 0; not run (seed 1)", "failed: the loss became nan", "made up"):
        assert note in shown_text(picture)
    assert legend(picture) == ["x0.35", "x0.5", "x0.75", "x1.0", "no result of ours"]


def test_a_changed_protocol_is_in_the_title_and_on_a_scale_of_its_own(draw: Draw, leave: Leave) -> None:
    leave(SB, 0, 50.0)
    picture, title = draw("sb/hidden", *SCALE, seeds=[0])
    warning = "CHANGED PROTOCOL: dataset=digits, schedule.epochs=2; not the paper's setting"
    assert title.endswith(warning) and warning in shown_text(picture)
    printed, ours = picture.axes
    assert printed.get_ylim()[0] > 80 > ours.get_ylim()[1]
    grounds = {to_hex(axes.get_facecolor()): axes.get_title() for axes in picture.axes}
    assert grounds == {PRINTED: "printed in the paper", "#ffffff": "ours"}
    line, open_line = error_bars(ours, 0).lines[0], error_bars(printed, 0).lines[0]
    assert (open_line.get_linestyle(), line.get_linestyle()) == ("--", "-")
    assert open_line.get_markerfacecolor() == "white" != line.get_markerfacecolor()


def test_the_papers_setting_is_on_one_scale_without_a_warning(draw: Draw, leave: Leave) -> None:
    leave(["experiment=sb_cifar10", "backbone.width=0.35", "attention=sb", "attention.hidden=2"], 0, 90.5)
    picture, title = draw("sb/hidden")
    assert "CHANGED" not in title + shown_text(picture)
    printed, ours = picture.axes
    assert printed.get_ylim() == ours.get_ylim()
    assert curve(ours, 0)[:2] == ([1.0], [90.5])


def test_what_is_not_run_at_all_says_so(draw: Draw) -> None:
    picture, _ = draw("eca/4")
    placeholders = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in picture.axes}
    assert placeholders["ours: ResNet-50"] == ["not run"] and placeholders["printed in the paper: ResNet-50"] == []
    assert len(crosses(picture.axes[2])) == 5  # k = 3, 5, 7, 9, adaptive
    heights = [np.asarray(line.get_ydata()) for line in picture.axes[1].lines]
    lines = [ys[0] for ys in heights if len(set(ys)) == 1]
    assert {77.62, 76.83} <= set(lines)  # SE and no attention of ResNet-101, across
    assert [tick.get_text() for tick in picture.axes[2].get_xticklabels()] == ["3", "5", "7", "9", "adaptive"]
    assert picture.axes[2].get_xlabel() == "kernel size k" and picture.axes[2].get_ylabel() == "top-1 accuracy (%)"


# Accuracy, parameters and operations


def circles(axes: Axes, number: int) -> PathCollection:
    """The n-th series of circles."""
    collection = axes.collections[number]
    assert isinstance(collection, PathCollection)
    return collection


def test_circles_are_at_parameters_and_are_as_large_as_operations(draw: Draw, leave: Leave) -> None:
    leave(["experiment=eca_imagenet", "backbone=resnet50", "attention=none", "dataset=digits"], 0, 80.0)
    figure = paper_figures.load("eca/1")
    plain, quoted = (figure.series[i] for i in (0, 3))  # ResNet and A2-Nets, without the slowest to count
    plain = replace(plain, rows={label: text for label, text in plain.rows.items() if text != "152"})
    figure = replace(figure, series=[plain, quoted])
    picture, title = draw(figure, "dataset=digits")
    printed, ours = picture.axes
    cells = [raw("eca/2")[row]["printed"] for series in figure.series for row in series.rows]
    per = [2**20] * 2 + [1e6]  # A2-Nets is quoted in decimal units
    at = np.concatenate([circle.get_offsets() for circle in printed.collections])
    assert at[:, 0].tolist() == pytest.approx([float(c["params"]) * p / 1e6 for c, p in zip(cells, per, strict=True)])
    assert at[:, 1].tolist() == [float(cell["top1"]) for cell in cells]
    areas = [circles(printed, number).get_sizes()[0] for number in range(len(printed.collections))]
    assert areas[1] / areas[0] == pytest.approx(7.34 / 3.86)

    ((x, y),) = np.asarray(ours.collections[0].get_offsets())
    composed = composition.compose(["backbone=resnet50"])
    assert x == pytest.approx(sum(p.numel() for p in factory.sketch(composed, 10)[0].parameters()) / 1e6)
    assert y == 80.0 and "CHANGED PROTOCOL: dataset=digits" in title
    assert circles(ours, 0).get_sizes()[0] > 100  # few operations at 16 pixels, on a scale of their own
    assert [text.get_text() for text in ours.texts] == ["50"] and len(crosses(ours)) == 2


# Given runs


def test_given_runs_are_matched_by_what_tells_the_rows_apart(draw: Draw, leave: Leave) -> None:
    given = [*SB, "batch_size=64"]
    folders = [leave([*given, f"attention.hidden={value}"], 3, 60.0 + value) for value in (1, 2, 4)]
    picture, title = draw("sb/hidden", runs=folders)
    assert curve(picture.axes[1], 0)[:2] == ([0.0, 1.0, 3.0], [61.0, 62.0, 64.0])
    assert [x for _, x in crosses(picture.axes[1])] == [2.0]
    changed = title.partition("CHANGED PROTOCOL: ")[2].partition(";")[0].split(", ")
    assert {"dataset=digits", "schedule.epochs=2", "batch_size=64"} <= set(changed)
    assert not any(override.startswith("attention.hidden") for override in changed)
    assert "seeds 3" in shown_text(picture) and "not run: SB hidden x3" in shown_text(picture)


def test_given_runs_of_the_papers_setting_are_not_called_changed(draw: Draw, leave: Leave) -> None:
    folder = leave(["experiment=sb_cifar10", "backbone.width=0.35", "attention=sb"], 0, 91.0)
    assert "CHANGED" not in draw("sb/hidden", runs=[folder])[1]


def test_runs_that_do_not_fit_are_refused(draw: Draw, leave: Leave) -> None:
    plain = leave(["attention=none"], 0, 60.0)
    with pytest.raises(ConfigError, match=r"none of 1 runs matches a row of sb/hidden .*differ by attention.hidden"):
        draw("sb/hidden", runs=[plain])
    two = [leave([*SB, f"batch_size={batch}"], 0, 60.0) for batch in (32, 64)]
    with pytest.raises(ConfigError, match="several configurations match SB hidden x1 .*batch_size"):
        draw("sb/hidden", runs=two)
    moved = two[0].rename(two[0].parent.parent / "elsewhere")
    with pytest.raises(Failure, match="not named after its configuration"):
        draw("sb/hidden", runs=[moved])


def test_any_runs_in_the_plane_of_their_costs(draw: Draw, leave: Leave) -> None:
    folders = []
    for seed in range(2):
        costs = {"params": 2_000_000, "macs": 3_000_000, "images_per_s": 100.0 + 20 * seed}
        folders.append(leave(["attention=eca"], seed, 60.0 + seed, **costs))
        folders.append(leave(["attention=none"], seed, 50.0, **costs | {"params": 1_000_000, "images_per_s": None}))
    picture, _ = draw("runs/plane", runs=folders)
    params, macs, speed = picture.axes
    assert [curve_at(axes, 1) for axes in (params, macs)] == [(2.0, 60.5), (3.0, 60.5)]
    assert [curve_at(axes, 0) for axes in (params,)] == [(1.0, 50.0)]
    assert curve_at(speed, 0) == (110.0, 60.5) and len(speed.containers) == 1  # the other one was not measured
    beside = speed.get_legend()
    assert beside and [text.get_text() for text in beside.get_texts()] == ["none (baseline)", "eca"]
    assert "images/s" in speed.get_xlabel() and "%" in params.get_ylabel()


def curve_at(axes: Axes, number: int) -> tuple[float, float]:
    line = error_bars(axes, number).lines[0]
    return np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[0]


# The command


@pytest.fixture
def run_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Runs ``attnbench figure`` in this process and returns what it prints."""

    def call(*given: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench figure", *given, "--outputs", str(tmp_path / "outputs")])
        capsys.readouterr()
        main.command("figure")()
        return capsys.readouterr().out

    return call


def test_the_command_writes_png_pdf_and_an_image_for_tensorboard(
    run_figure: Callable[..., str], leave: Leave, tmp_path: Path
) -> None:
    leave(SB, 0, 50.0)
    for _ in range(2):  # the second call replaces the first picture
        printed = run_figure("sb/hidden", "--scale", *SCALE, "--seeds", "1", "--output", str(tmp_path / "out"))
    png, pdf = tmp_path / "out" / "sb-hidden.png", tmp_path / "out" / "sb-hidden.pdf"
    assert printed.split() == [str(png), str(pdf)]
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CHANGED PROTOCOL: dataset=digits" in png.read_bytes()
    (event,) = (tmp_path / "outputs" / "figures").iterdir()
    shown = EventAccumulator(str(event), size_guidance={"images": 0}).Reload()
    (image,) = shown.Images("sb/hidden")
    assert image.encoded_image_string == png.read_bytes()
    assert image.width > 600 and image.height > 300


def test_the_list_has_the_state_of_each_figure(
    run_figure: Callable[..., str], leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        paper_figures, "ids", lambda: ["eca/7", "sb/hidden", "runs/plane"]
    )  # all of them take their time
    leave(SB, 0, 50.0)
    listed = json.loads(run_figure("--json", "--seeds", "1", "--scale", *SCALE))
    assert "dataset=digits" in listed["changed_protocol"]
    by_id = {one["id"]: one for one in listed["figures"]}
    assert [by_id["sb/hidden"][key] for key in ("cells_run", "cells", "runs_done", "runs")] == [1, 4, 1, 4]
    assert by_id["eca/7"]["runs"] == 2 and by_id["runs/plane"]["runs"] == 0


def test_a_narrowed_figure_has_only_the_panels_asked_for() -> None:
    figure = paper_figures.load("sb/placement").narrowed(["x0.5"])
    assert figure.axis is not None
    assert set(figure.labels()) == {"static x0.5", *(f"{a} x0.5 {p}" for a in ("SE", "SB") for p in figure.axis.ticks)}


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["eca/44"], 2, "there is no figure eca/44 .*did you mean eca/4"),
        (["eca/7", "--runs", "nowhere"], 3, "no run here .nowhere"),
        (["eca/7"], 3, "eca/7 has no run to show"),
        (["sb/learned_lambda"], 3, "has no run to show"),
        (["runs/plane"], 2, "runs/plane needs runs"),
        (["sb/gate", "--panels", "x9"], 2, "has no panel x9"),
        (["sb/gate", "--scale", "epohcs=2"], 2, "epohcs"),
        (["sb/gate", "--seeds", "0"], 2, "neither a number of seeds"),
        (["--panels", "x0.5"], 2, "--panels needs a figure"),
        (["sb/hidden", "--runs", "{run}", "--seeds", "5,7"], 3, "no run has these seeds .*choose from 0"),
    ],
)
def test_bad_arguments_give_one_line_and_an_exit_code(
    run_figure: Callable[..., str], leave: Leave, tmp_path: Path, given: list[str], code: int, message: str
) -> None:
    folder = str(leave(SB, 0, 50.0)) if "{run}" in given else ""
    with pytest.raises(Failure, match=message) as raised:
        run_figure(*(argument.replace("{run}", folder) for argument in given))
    assert raised.value.code == code and "\n" not in str(raised.value)
    assert not (tmp_path / "outputs" / "figures").exists()


def test_ids_overrides_and_option_values_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["figure", "--runs", "a/k=3/*", "b", "dataset.root=/d", "eca/7", "--blocks", "2_1", "eca/6"]
    )
    taken = figure._options()
    assert taken.ids == ["eca/7", "eca/6"] and taken.runs == ["a/k=3/*", "b"]
    assert taken.overrides == ["dataset.root=/d"] and taken.blocks == ["2_1"]


def test_a_picture_is_the_same_bytes_each_time(draw: Draw) -> None:
    one, other = (saving.png(draw("sb/dropout")[0], "about") for _ in range(2))
    assert one == other
