"""Reports over the runs of whole tables: pictures hold them all, damaged ones are named, data are never pooled."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Picture

from attnbench.base.errors import StorageError
from attnbench.reports.comparison import Comparison, compare
from attnbench.reports.figures import panels, sweep
from attnbench.reports.figures.value_axis import value_axis
from attnbench.runs import results
from attnbench.runs.results import Run
from tests import full_tables

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("full")
    assert len(full_tables.leave(outputs, ["sb/5", "sb/9"])) > 150
    return outputs


@pytest.fixture(scope="module")
def comparison(tables: Path) -> Comparison:
    """A run of each configuration of a table."""
    return compare(results.find([f"{tables}/runs/**/seed0"]))


def run(number: int, values: dict[str, Any], seed: int = 0, top1: float = 50.0, data: str = "0") -> Run:
    about = {"source": "made up", "fingerprint": data}
    result = {"status": "done", "top1": top1, "params": 10, "macs": 10, "images_per_s": 1.0, "data": about}
    named = {"dataset": "digits", "backbone": "resnet20", "attention": "eca"}
    return Run(Path(f"/nowhere/{number}/seed{seed}"), seed, named | values, result)


def made(picture: Picture) -> Picture:
    picture.draw_without_rendering()
    return picture


def holds(picture: Picture) -> None:
    """No legend, title or text leaves the picture or covers the title."""
    renderer = picture._get_renderer()  # type: ignore[attr-defined]
    whole = picture.get_window_extent(renderer)
    title = picture._suptitle.get_window_extent(renderer)  # type: ignore[attr-defined]
    for axes in picture.axes:
        box = axes.get_tightbbox(renderer)
        assert box is not None
        assert box.x0 >= -1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1 and box.y1 <= title.y0 + 1
        assert axes.get_window_extent(renderer).width > 100 and axes.get_window_extent(renderer).height > 60


def test_every_point_of_a_picture_stands_at_its_x(comparison: Comparison) -> None:
    assert len(comparison.groups) > 18
    picture = made(sweep.along(comparison))
    assert len(picture.axes) > 1
    holds(picture)
    places = value_axis(group.at(comparison.axis) for group in comparison.groups).places.values()
    drawn = 0
    for axes in picture.axes:
        for container in axes.containers:
            x = np.array(list(container.lines[0].get_xdata()))  # type: ignore[attr-defined]
            near = np.abs(x[:, None] - np.array(list(places))).min(1)
            assert near.max() < 0.31
            drawn += len(x)
        drawn += sum(line.get_linestyle() in ("--", ":") for line in axes.lines)
    assert drawn == len(comparison.groups)


def test_names_are_dodged_by_less_than_half_their_distance_and_numbers_never() -> None:
    groups = compare([run(i, {"a": f"a{i}", "z.k": k}) for i in range(14) for k in ("p", "q")], by="z.k")
    [axes] = sweep.along(groups).axes
    for container, x in ((c, np.asarray(c.lines[0].get_xdata())) for c in axes.containers):  # type: ignore[attr-defined]
        assert np.abs(x - [0, 1]).max() <= 0.31, container
    groups = compare([run(i, {"a": f"a{i}", "z.k": k}) for i in range(14) for k in (3, 5, 9)], by="z.k")
    [axes] = sweep.along(groups).axes
    for container in axes.containers:
        assert list(container.lines[0].get_xdata()) == [3, 5, 9]  # type: ignore[attr-defined]


def test_numbers_are_on_a_true_axis() -> None:
    assert value_axis([9, 3, 5, "adaptive"]).places == {"3": 3, "5": 5, "9": 9, "adaptive": 12}
    assert value_axis([0.01, 1.0, 0.1]).scale == "log" and value_axis([0.0, 1.0]).scale == "linear"
    assert value_axis(["b", "a"]).places == {"a": 0, "b": 1}


def test_the_plane_of_costs_holds_a_whole_table(comparison: Comparison) -> None:
    picture = made(sweep.costs(comparison, "title", ["a note"]))
    holds(picture)
    points = sum(len(axes.containers) for axes in picture.axes[::3])
    assert points == len(comparison.groups)


def test_what_a_picture_cannot_hold_is_said_and_in_the_table(
    command: Command, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (panels, sweep):
        monkeypatch.setattr(module, "PANELS", 1)
    done = command("compare", f"{tables}/runs/**/seed0", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the picture leaves out" in done.stdout
    assert "the picture leaves out" in (tmp_path / "compare.md").read_text()
    with open(tmp_path / "compare.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) > 18


def test_runs_without_the_metric_are_counted_and_shape_nothing() -> None:
    lacking = [run(9, {"z.other": 7}), run(10, {"z.other": 8})]
    for one in lacking:
        del one.result["top1"]
        one.result["AP"] = 30.0
    found = compare([run(1, {"z.k": 3}), run(2, {"z.k": 5}), *lacking])
    assert found.keys == ["z.k"] and len(found.groups) == 2
    [note] = [note for note in found.notes if "without top1" in note]
    assert "2 of 4 runs" in note and "/nowhere/9/seed0" in note


def test_other_data_are_never_pooled() -> None:
    runs = [run(i, {"attention": a}, seed, 50 + i, data) for i, (a, data, seed) in enumerate(
        [("none", "aa", 0), ("none", "bb", 1), ("eca", "aa", 0), ("eca", "bb", 1)])]  # fmt: skip
    found = compare(runs)
    assert [len(group.scores) for group in found.groups] == [1, 1, 1, 1] and "data" in found.keys
    assert [group.against and group.against.mean for group in found.groups] == [None, None, 2.0, 2.0]
    assert "digits" in found.title


def test_the_baseline_is_first_and_marked(command: Command, tables: Path, tmp_path: Path) -> None:
    groups = compare([run(1, {"attention": "eca"}), run(2, {"attention": "se"})], baseline="attention=se").groups
    assert [(group.label, group.is_baseline) for group in groups] == [("se", True), ("eca", False)]
    done = command("compare", f"{tables}/runs/**/seed0", "--output", str(tmp_path))
    assert "baseline" in done.stdout
    with open(tmp_path / "compare.csv", newline="") as file:
        marked = [row["is_baseline"] for row in csv.DictReader(file)]
    assert marked[0] == "True" and marked == sorted(marked, reverse=True)


def test_provenance_is_short() -> None:
    many = [run(i, {f"z.k{i % 13}": i, "attention": f"a{i}"}) for i in range(26)]
    assert sum("along with" in note for note in compare(many).notes) <= 1
    for i, one in enumerate(many):
        one.result["data"] = {"source": f"source {i}", "fingerprint": "0"}
    [data] = [note for note in compare(many).notes if "kinds of data" in note]
    assert "and 22 more (22 runs)" in data


DAMAGED = {
    "result.json": [
        '{"status": "done", "top1": "x"}',
        '{"status": "done", "top1": 1.0, "data": null}',
        '{"status": "done", "top1": NaN}',
        "[1, 2]",
        '{"status": "do',
        '{"status": "done", "params": [1]}',
        '{"status": "done", "top1": 1.0, "weights": 3}',
        '{"status": "done", "top1": 1.0, "data": {"source": 3}}',
    ],
    "env.json": ["[]", "null", "{", '"x"'],
    "config.yaml": ["[", "null", "a: 1"],
    "status.json": ["[]"],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, some in DAMAGED.items() for one in some])
def test_one_damaged_record_is_named_and_the_rest_reported(
    command: Command, tables: Path, tmp_path: Path, name: str, content: str
) -> None:
    folders = sorted(path.parent for path in tables.glob("runs/**/seed0/config.yaml"))[:3]
    for number, folder in enumerate(folders):
        copy = tmp_path / "runs" / str(number) / "seed0"
        copy.mkdir(parents=True)
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / name).write_text(content)
    if name == "status.json":
        (copy / "result.json").unlink()
    done = command("compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert str(copy) in done.stdout
    with open(tmp_path / "out" / "compare.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == (3 if name == "env.json" else 2)


def test_a_table_names_damaged_records_too(command: Command, tmp_path: Path) -> None:
    folders = full_tables.leave(tmp_path, ["sb/3"])
    (folders[0] / "result.json").write_text('{"status": "done", "top1": "x", "data": null}')
    (folders[1] / "env.json").write_text("[]")
    done = command("table", "sb/3", "--outputs", str(tmp_path), "--format", "json")
    assert done.returncode == 0, done.stderr
    states = [trace["state"] for row in json.loads(done.stdout)["rows"] for trace in row["cells"]["top1"]["runs"]]
    assert states.count("unreadable") == 1 and states.count("done") == len(folders) - 1
    assert 'top1 is "x"' in done.stdout.replace('\\"', '"')
    assert f"{folders[1]}: env.json" in done.stdout


def test_the_only_run_with_a_damaged_configuration_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("[")
    with pytest.raises(StorageError):
        results.find([str(tmp_path)])


@pytest.mark.slow
def test_all_tables_at_once(command: Command, tmp_path: Path) -> None:
    assert len(full_tables.leave(tmp_path / "outputs")) > 423
    runs = tmp_path / "outputs" / "runs"
    for words in (["compare", f"{runs}/cifar10"], ["figure", "runs/plane", "--runs", f"{runs}/cifar10"]):
        done = command(*words, "--output", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
