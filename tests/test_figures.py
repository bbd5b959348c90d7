"""Figures: what is drawn is what the tables print and the runs left, and what is missing is seen to be missing."""

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
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnbench import build, cli, config, figuring, results, run, storage
from attnbench.config import Config
from attnbench.errors import ConfigError, DataError, Failure
from attnbench.figures import channels, data, files, kinds, lambdas, signals
from attnbench.figures.canvas import PRINTED
from attnbench.tables.runs import Composer, seeded
from attnbench.trained import load_run, ready

LAMBDAS = ["0.01", "0.05", "0.1", "0.5", "1.0"]
TINY = ("runtime.device=cpu", "backbone=resnet20", "dataset.size=4", "batch_size=512", "schedule.epochs=1")

Draw = Callable[..., tuple[Picture, str]]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """A figure of the runs in the test's own folder."""

    def drawn(
        name: str | data.Figure,
        *words: str,
        seeds: list[int] | None = None,
        runs: list[Path] | None = None,
        **looks: Any,
    ):
        composer = Composer([*words, f"paths.outputs={tmp_path}/outputs"])
        given = None if runs is None else results.find(map(str, runs))
        figure = data.load(name) if isinstance(name, str) else name
        return kinds.draw(figure, given, composer, seeds, kinds.Looks(**looks))

    return drawn


@pytest.fixture
def leave(tmp_path: Path) -> Callable[..., Path]:
    """Leaves what a run of some overrides would have left."""

    def done(words: list[str], seed: int, top1: float | None = None, **result: Any) -> Path:
        composed = config.compose([*words, f"paths.outputs={tmp_path}/outputs"])
        folder = seeded(composed, seed).run_folder
        folder.mkdir(parents=True, exist_ok=True)
        record = {"choices": composed.choices, "hash": composed.hash, **composed.tree, "seed": seed}
        (folder / "config.yaml").write_text(yaml.safe_dump(record))
        storage.write_json(folder / "env.json", {"commit": "c0ffee", "device": "a card"})
        if top1 is None:
            storage.write_json(folder / "status.json", {"status": "failed", "error": "the loss became nan"})
        else:
            left = {"status": "done", "top1": top1, "best_top1": top1, "epochs": 2, "seed": seed}
            storage.write_json(folder / "result.json", left | {"data": {"source": "made up"}} | result)
        return folder

    return done


def curve(axes: Axes, number: int) -> tuple[list[float], list[float], list[float]]:
    """The x, the means and the deviations of the n-th curve with error bars."""
    line, _, (bars,) = axes.containers[number].lines
    halves = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
    return list(line.get_xdata()), list(line.get_ydata()), halves


def crosses(axes: Axes) -> list[tuple[str, float]]:
    """Colour and x of the marks of missing values."""
    marks = [line for line in axes.lines if line.get_marker() == "x"]
    return [(to_hex(line.get_color()), x) for line in marks for x in line.get_xdata()]


def words(picture: Picture) -> str:
    """Title and notes, without the line breaks."""
    return " ".join(f"{picture.get_suptitle()} {picture.get_supxlabel()}".split())


def legend(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.legends[0].get_texts()]


# The figures as data


def raw(table: str) -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((config.folder() / "table" / f"{table}.yaml").read_text("utf-8"))
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
    assert set(data.ids()) >= EXPECTED
    assert data.ids()[0] == "eca/1" and data.ids()[-1] == "runs/plane"


@pytest.mark.parametrize("name", data.ids())
def test_every_row_of_a_figure_is_there_and_composes(name: str) -> None:
    figure = data.load(name)
    assert figure.kind in kinds.KINDS
    tables = {label: row for table in figure.tables for label, row in raw(table).items()}
    own = {row.label: row for row in figure.rows}
    for row in figure.table.rows:
        if row.label not in own:  # those of tables are composed by the tables' tests
            assert (row.overrides, row.printed) == (tables[row.label]["overrides"], tables[row.label]["printed"])
    with config.prepared():
        assert all(config.compose(row.overrides or []) for row in own.values())
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
    assert set(data.load(name).labels()) >= set(raw(table))


def test_no_number_is_copied_into_a_figure() -> None:
    for name in data.ids():
        content = yaml.safe_load((data.folder() / f"{name}.yaml").read_text("utf-8"))
        assert not any("printed" in row or "top1" in row for row in content.get("rows", []))
    rows = {row.label: row.printed for row in data.load("eca/4").rows}
    assert rows["ECA ResNet-50 k=3"]["top1"] == raw("eca/1")["ECA"]["printed"]["top1"]
    assert rows["ECA ResNet-101 k=adaptive"]["top1"] == raw("eca/2")["ECA-Net ResNet-101"]["printed"]["top1"]
    assert not rows["ECA ResNet-50 k=7"]


# Curves

SCALE = ("dataset=digits", "epochs=2")
SB = ["experiment=sb_cifar10", "backbone.width=0.35", "attention=sb", "dataset=digits", "schedule.epochs=2"]


def test_curves_are_the_printed_cells_and_our_means(draw: Draw, leave: Callable[..., Path]) -> None:
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
    assert deviations == pytest.approx([stdev([40.0, 44.0]), stdev([50.0, 51.0]), 0])
    assert x == pytest.approx([float(value) for value in ours], rel=0.08)
    assert here.get_xscale() == "log"
    blue = to_hex(here.containers[0].lines[0].get_color())
    assert [at for colour, at in crosses(here) if colour == blue] == pytest.approx([0.05, 0.5], rel=0.08)
    assert len(crosses(here)) == 2 + 3 * 5
    for said in ("5 done of 40", "1 of 2 seeds: 0; not run (seed 1)", "failed: the loss became nan", "made up"):
        assert said in words(picture)
    assert legend(picture) == ["x0.35", "x0.5", "x0.75", "x1.0", "no result of ours"]


def test_a_changed_protocol_is_in_the_title_and_on_a_scale_of_its_own(draw: Draw, leave: Callable[..., Path]) -> None:
    leave(SB, 0, 50.0)
    picture, title = draw("sb/hidden", *SCALE, seeds=[0])
    warning = "CHANGED PROTOCOL: dataset=digits, schedule.epochs=2; not the paper's setting"
    assert title.endswith(warning) and warning in words(picture)
    printed, ours = picture.axes
    assert printed.get_ylim()[0] > 80 > ours.get_ylim()[1]
    grounds = {to_hex(axes.get_facecolor()): axes.get_title() for axes in picture.axes}
    assert grounds == {PRINTED: "printed in the paper", "#ffffff": "ours"}
    line, open_line = ours.containers[0].lines[0], printed.containers[0].lines[0]
    assert (open_line.get_linestyle(), line.get_linestyle()) == ("--", "-")
    assert open_line.get_markerfacecolor() == "white" != line.get_markerfacecolor()


def test_the_papers_setting_is_on_one_scale_without_a_warning(draw: Draw, leave: Callable[..., Path]) -> None:
    leave(["experiment=sb_cifar10", "backbone.width=0.35", "attention=sb", "attention.hidden=2"], 0, 90.5)
    picture, title = draw("sb/hidden")
    assert "CHANGED" not in title + words(picture)
    printed, ours = picture.axes
    assert printed.get_ylim() == ours.get_ylim()
    assert curve(ours, 0)[:2] == ([1.0], [90.5])


def test_what_is_not_run_at_all_says_so(draw: Draw) -> None:
    picture, _ = draw("eca/4")
    said = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in picture.axes}
    assert said["ours: ResNet-50"] == ["not run"] and said["printed in the paper: ResNet-50"] == []
    assert len(crosses(picture.axes[2])) == 5  # k = 3, 5, 7, 9, adaptive
    lines = [line.get_ydata()[0] for line in picture.axes[1].lines if len(set(line.get_ydata())) == 1]
    assert {77.62, 76.83} <= set(lines)  # SE and no attention of ResNet-101, across
    assert [tick.get_text() for tick in picture.axes[2].get_xticklabels()] == ["3", "5", "7", "9", "adaptive"]
    assert picture.axes[2].get_xlabel() == "kernel size k" and picture.axes[2].get_ylabel() == "top-1 accuracy (%)"


# Accuracy, parameters and operations


def test_circles_stand_at_parameters_and_are_as_large_as_operations(draw: Draw, leave: Callable[..., Path]) -> None:
    leave(["experiment=eca_imagenet", "backbone=resnet50", "attention=none", "dataset=digits"], 0, 80.0)
    figure = data.load("eca/1")
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
    areas = [circle.get_sizes()[0] for circle in printed.collections]
    assert areas[1] / areas[0] == pytest.approx(7.34 / 3.86)

    ((x, y),) = ours.collections[0].get_offsets()
    composed = config.compose(["backbone=resnet50"])
    assert x == pytest.approx(sum(p.numel() for p in build.sketch(composed, 10)[0].parameters()) / 1e6)
    assert y == 80.0 and "CHANGED PROTOCOL: dataset=digits" in title
    assert [text.get_text() for text in ours.texts] == ["50"] and len(crosses(ours)) == 2


# Given runs


def test_given_runs_are_matched_by_what_tells_the_rows_apart(draw: Draw, leave: Callable[..., Path]) -> None:
    given = [*SB, "batch_size=64"]
    folders = [leave([*given, f"attention.hidden={value}"], 3, 60.0 + value) for value in (1, 2, 4)]
    picture, title = draw("sb/hidden", runs=folders)
    assert curve(picture.axes[1], 0)[:2] == ([0.0, 1.0, 3.0], [61.0, 62.0, 64.0])
    assert [x for _, x in crosses(picture.axes[1])] == [2.0]
    changed = title.partition("CHANGED PROTOCOL: ")[2].partition(";")[0].split(", ")
    assert {"dataset=digits", "schedule.epochs=2", "batch_size=64"} <= set(changed)
    assert not any(word.startswith("attention.hidden") for word in changed)
    assert "seeds 3" in words(picture)


def test_given_runs_of_the_papers_setting_are_not_called_changed(draw: Draw, leave: Callable[..., Path]) -> None:
    folder = leave(["experiment=sb_cifar10", "backbone.width=0.35", "attention=sb"], 0, 91.0)
    assert "CHANGED" not in draw("sb/hidden", runs=[folder])[1]


def test_runs_that_do_not_fit_are_refused(draw: Draw, leave: Callable[..., Path]) -> None:
    plain = leave(["attention=none"], 0, 60.0)
    with pytest.raises(ConfigError, match=r"none of 1 runs fits a row of sb/hidden .*told apart by attention.hidden"):
        draw("sb/hidden", runs=[plain])
    two = [leave([*SB, f"batch_size={batch}"], 0, 60.0) for batch in (32, 64)]
    with pytest.raises(ConfigError, match="SB hidden x1 fits several configurations .*batch_size"):
        draw("sb/hidden", runs=two)
    moved = two[0].rename(two[0].parent.parent / "elsewhere")
    with pytest.raises(Failure, match="not named after its configuration"):
        draw("sb/hidden", runs=[moved])


def test_any_runs_in_the_plane_of_their_costs(draw: Draw, leave: Callable[..., Path]) -> None:
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
    assert legend(picture) == ["none", "eca"]
    assert "images/s" in speed.get_xlabel() and "%" in params.get_ylabel()


def curve_at(axes: Axes, number: int) -> tuple[float, float]:
    line = axes.containers[number].lines[0]
    return line.get_xdata()[0], line.get_ydata()[0]


# Inside of networks


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Runs on the digits, done, by attention."""
    outputs = f"paths.outputs={tmp_path_factory.mktemp('outputs')}"
    made = {
        "eca": config.compose([*TINY, "attention=eca", outputs]),
        "se": config.compose([*TINY, "attention=se", outputs]),
        "none": config.compose([*TINY, outputs]),
        "sb": config.compose([*TINY, "attention=sb", "placement.stages=[2]", "schedule.epochs=2", outputs]),
    }
    for composed in made.values():
        run.train(composed)
    return made


def test_hooks_hear_what_a_hand_computation_gives(ran: dict[str, Config]) -> None:
    trained = load_run(ran["eca"].run_folder)
    model = trained.model.double()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with signals.listening(model) as heard, torch.no_grad():
        model(images)
    (block,) = signals.blocks(trained, ["2_1"])[0]
    assert block == signals.Block("2_1", "layer1.0.bn2")
    first = model.layer1[0]
    with torch.no_grad():
        x = torch.relu(model.bn1(model.conv1(images)))
        z = first.bn2.trunk(first.conv2(torch.relu(first.bn1(first.conv1(x)))))
    pooled = z.sum((2, 3)) / (z.shape[2] * z.shape[3])
    w = first.bn2.attention.conv.weight.detach().flatten()
    padded = torch.nn.functional.pad(pooled, (1, 1))
    mixed = sum(w[i] * padded[:, i : i + pooled.shape[1]] for i in range(3))
    assert torch.allclose(heard.squeezes[block.path], pooled, rtol=0, atol=1e-12)
    assert torch.allclose(heard.signals[block.path], 1 / (1 + torch.exp(-mixed)), rtol=0, atol=1e-12)
    assert len(heard.signals) == len(heard.squeezes) == 9
    assert not any(module._forward_hooks for module in model.modules())


def test_mean_weights_are_those_of_the_images_one_by_one(ran: dict[str, Config]) -> None:
    trained = load_run(ran["se"].run_folder)
    here, lacking = signals.blocks(trained, ["3_2", "5_3"])
    assert [block.name for block in here] == ["3_2"] and lacking == ["5_3"]
    with ready(trained) as opened:
        made = signals.mean_weights(opened, here, "")
        every = [
            (image[None], int(target))
            for batch in opened.val.epoch(0)
            for image, target in zip(*batch[:2], strict=True)
        ]
        branch = opened.model.layer2[1].bn2
        kept: list[torch.Tensor] = []
        hook = branch.trunk.register_forward_hook(lambda m, i, y: kept.append(y))
        with torch.no_grad():
            alone = [(opened.model(image), target)[1] for image, target in every[:40]]
        hook.remove()
        with torch.no_grad():
            weights = torch.stack([branch.attention(z)[0, :, 0, 0] for z in kept])
    with ready(trained) as opened:
        few = opened.val.epoch(0)
        batch = next(few)
        cut = batch._replace(images=batch.images[:40], targets=batch.targets[:40])
        counts, sums = torch.zeros(10, dtype=torch.float64), {}
        with signals.listening(opened.model) as heard, torch.no_grad():
            opened.model(cut.images)
            signals._add(cut, here, heard.signals, sums, counts)
    for digit in range(10):
        mine = [i for i, target in enumerate(alone) if target == digit]
        assert counts[digit] == len(mine)
        assert torch.allclose(sums["3_2"][digit], weights[mine].double().sum(0), atol=1e-5)
    assert made.images == 359 and made.classes == list("0123456789") and made.means["3_2"].shape == (10, 32)


def test_figure_7_has_se_above_eca_and_figure_6_a_row_for_each_image(draw: Draw, ran: dict[str, Config]) -> None:
    folders = [ran[name].run_folder for name in ("eca", "se")]
    picture, title = draw("eca/7", runs=folders, blocks=["2_1", "4_3"], classes=["3", "7"])
    titles = [axes.get_title() for axes in picture.axes if axes.get_title()]
    assert titles == [
        "se: conv 2_1 (layer1.0.bn2)",
        "se: conv 4_3 (layer3.2.bn2)",
        *(t.replace("se", "eca") for t in titles[:2]),
    ]
    assert legend(picture) == ["class 3", "class 7", "all classes"]
    assert "backbone=resnet20" in title and "dataset=digits" in title
    with ready(load_run(folders[1])) as opened:
        made = signals.mean_weights(opened, [signals.Block("2_1", "layer1.0.bn2")], "")
    three, seven, all_of_them = (line.get_ydata() for line in picture.axes[0].lines)
    assert np.allclose(three, made.means["2_1"][3]) and np.allclose(seven, made.means["2_1"][7])
    assert np.allclose(all_of_them, made.means["2_1"].mean(0))

    picture, _ = draw("eca/6", runs=folders[:1], images=[5, 17, 200])
    assert sum(bool(axes.images) for axes in picture.axes) == 3
    assert sum(len(axes.lines) for axes in picture.axes) == 3 * 3  # GAP 2_3, 3_2 and 4_3: resnet20 has no more
    assert "resnet20 has no attention at 3_4, 4_6, 5_3" in words(picture)


def test_the_likeness_of_images_is_their_mean_correlation() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [2.0, 1.0, 0.0]])
    assert channels.alike(values) == pytest.approx((1 - 1 - 1) / 3)


def test_a_row_that_is_not_run_is_seen_to_be_missing(draw: Draw, ran: dict[str, Config]) -> None:
    picture, _ = draw("eca/7", runs=[ran["eca"].run_folder], blocks=["2_1"])
    assert [text.get_text() for text in picture.axes[0].texts] == ["not run"]
    assert picture.axes[0].get_title() == "SENet ResNet-50: 2_1"


def test_learned_lambda_is_what_the_run_recorded(draw: Draw, ran: dict[str, Config]) -> None:
    folder = ran["sb"].run_folder
    picture, title = draw("sb/learned_lambda", runs=[folder])
    lines = [json.loads(line)["lambda"] for line in (folder / "gauges.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    first, second, last = picture.axes[:3]
    assert [axes.get_title() for axes in (first, second, last)] == ["conv1", "conv2", "after the last epoch"]
    for axes, conv in ((first, "conv1"), (second, "conv2")):
        paths = [f"layer2.{i}.{conv}.attention" for i in range(3)]
        drawn = [line.get_ydata() for line in axes.lines]
        assert [list(y) for y in drawn] == [[0.1, *(epoch[path]["mean"] for epoch in lines)] for path in paths]
    weights = load_run(folder).model.layer2[0].conv1.attention.lambda_.detach()
    (learned,) = lambdas.learned(results.find([str(folder)]))
    place = learned.places[0]
    assert (place.role, place.depth) == ("conv1", 1)
    assert place.last["mean"] == pytest.approx(float(weights.mean()), abs=1e-6)
    assert place.last["max"] == pytest.approx(float(weights.max()), abs=1e-6)
    assert len(set(place.means)) == 3  # it moved
    assert "backbone=resnet20" in title


@pytest.mark.parametrize(
    ("name", "attention", "error", "said"),
    [
        ("eca/7", "none", ConfigError, "none of 1 runs fits a row of eca/7"),
        ("eca/6", "none", ConfigError, "no attention in this network"),
        ("sb/learned_lambda", "eca", DataError, "none of 1 runs has recorded a lambda"),
    ],
)
def test_a_run_without_what_a_figure_shows_is_refused(
    draw: Draw, ran: dict[str, Config], name: str, attention: str, error: type[Failure], said: str
) -> None:
    with pytest.raises(error, match=said):
        draw(name, runs=[ran[attention].run_folder])


def test_blocks_images_and_classes_that_are_not_there_are_named(draw: Draw, ran: dict[str, Config]) -> None:
    folder = [ran["eca"].run_folder]
    for name, looks, said in (
        ("eca/6", {"blocks": ["9_9"]}, "no attention at block 9_9 .*2_1, 2_2"),
        ("eca/6", {"images": [359]}, "there is no image 359 .*use 0 to 358"),
        ("eca/7", {"classes": ["cat"]}, "there is no class cat .*there are 0, 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            draw(name, runs=folder, **looks)


# The command


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """What ``attnbench figure`` prints, in this process."""

    def call(*given: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench figure", *given, "--outputs", str(tmp_path / "outputs")])
        capsys.readouterr()
        cli.command("figure")()
        return capsys.readouterr().out

    return call


def test_the_command_writes_png_pdf_and_an_image_for_tensorboard(
    say: Callable[..., str], leave: Callable[..., Path], tmp_path: Path
) -> None:
    leave(SB, 0, 50.0)
    for _ in range(2):  # drawn again, it takes the place of the first one
        printed = say("sb/hidden", "--scale", *SCALE, "--seeds", "1", "--output", str(tmp_path / "out"))
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
    say: Callable[..., str], leave: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ids", lambda: ["eca/7", "sb/hidden", "runs/plane"])  # all of them take their time
    leave(SB, 0, 50.0)
    listed = json.loads(say("--json", "--seeds", "1", "--scale", *SCALE))
    assert "dataset=digits" in listed["changed_protocol"]
    by_id = {one["id"]: one for one in listed["figures"]}
    assert [by_id["sb/hidden"][key] for key in ("cells_run", "cells", "runs_done", "runs")] == [1, 4, 1, 4]
    assert by_id["eca/7"]["runs"] == 2 and by_id["runs/plane"]["runs"] == 0


def test_a_narrowed_figure_has_only_the_panels_asked_for() -> None:
    figure = data.load("sb/placement").narrowed(["x0.5"])
    assert set(figure.labels()) == {"static x0.5", *(f"{a} x0.5 {p}" for a in ("SE", "SB") for p in figure.axis.ticks)}


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["eca/44"], 2, "there is no figure eca/44 .*did you mean eca/4"),
        (["eca/7", "--runs", "nowhere"], 3, "no run here .nowhere"),
        (["eca/7"], 3, "eca/7 has no run to show"),
        (["sb/learned_lambda"], 3, "has no run to show"),
        (["runs/plane"], 2, "runs/plane of which runs"),
        (["sb/gate", "--panels", "x9"], 2, "has no panel x9"),
        (["sb/gate", "--scale", "epohcs=2"], 2, "epohcs"),
        (["sb/gate", "--seeds", "0"], 2, "neither a number of seeds"),
        (["--panels", "x0.5"], 2, "--panels of which figure"),
    ],
)
def test_bad_words_are_one_line_and_a_code(
    say: Callable[..., str], tmp_path: Path, given: list[str], code: int, said: str
) -> None:
    with pytest.raises(Failure, match=said) as raised:
        say(*given)
    assert raised.value.code == code and "\n" not in str(raised.value)
    assert not (tmp_path / "outputs" / "figures").exists()


def test_words_are_told_apart_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["figure", "--runs", "a/k=3/*", "b", "dataset.root=/d", "eca/7", "--blocks", "2_1", "eca/6"]
    )
    taken = figuring._words()
    assert taken.ids == ["eca/7", "eca/6"] and taken.runs == ["a/k=3/*", "b"]
    assert taken.overrides == ["dataset.root=/d"] and taken.blocks == ["2_1"]


def test_a_picture_is_the_same_bytes_each_time(draw: Draw) -> None:
    one, other = (files.png(draw("sb/dropout")[0], "about") for _ in range(2))
    assert one == other
