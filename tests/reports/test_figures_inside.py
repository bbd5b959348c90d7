"""Figures of the inside of networks: what hooks record, and what is drawn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from attnbench.base.errors import ConfigError, DataError, Failure
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.reports.figures import channels, hooks, lambdas
from attnbench.runs import results, run
from attnbench.runs.load import load_run, ready
from tests.figure_fixtures import Draw, Leave, legend, shown_text

TINY = ("runtime.device=cpu", "backbone=resnet20", "dataset.size=4", "batch_size=512", "schedule.epochs=1")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Runs on the digits, done, by attention."""
    outputs = f"paths.outputs={tmp_path_factory.mktemp('outputs')}"
    made = {
        "eca": composition.compose([*TINY, "attention=eca", outputs]),
        "se": composition.compose([*TINY, "attention=se", outputs]),
        "none": composition.compose([*TINY, outputs]),
        "sb": composition.compose([*TINY, "attention=sb", "placement.stages=[2]", "schedule.epochs=2", outputs]),
    }
    for composed in made.values():
        run.train(composed)
    return made


def test_hooks_record_what_a_hand_computation_gives(ran: dict[str, Config]) -> None:
    trained = load_run(ran["eca"].run_folder)
    model: Any = trained.model.double()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with hooks.recording(model) as recorded, torch.no_grad():
        model(images)
    (block,) = hooks.blocks(trained, ["2_1"])[0]
    assert block == hooks.Block("2_1", "layer1.0.bn2")
    first = model.layer1[0]
    with torch.no_grad():
        x = torch.relu(model.bn1(model.conv1(images)))
        z = first.bn2.trunk(first.conv2(torch.relu(first.bn1(first.conv1(x)))))
    pooled = z.sum((2, 3)) / (z.shape[2] * z.shape[3])
    w = first.bn2.attention.conv.weight.detach().flatten()
    padded = torch.nn.functional.pad(pooled, (1, 1))
    mixed = sum(w[i] * padded[:, i : i + pooled.shape[1]] for i in range(3))
    assert torch.allclose(recorded.squeezes[block.path], pooled, rtol=0, atol=1e-12)
    assert torch.allclose(recorded.signals[block.path], 1 / (1 + torch.exp(-mixed)), rtol=0, atol=1e-12)
    assert len(recorded.signals) == len(recorded.squeezes) == 9
    assert not any(module._forward_hooks for module in model.modules())


def test_mean_weights_are_those_of_the_images_one_by_one(ran: dict[str, Config]) -> None:
    trained = load_run(ran["se"].run_folder)
    here, lacking = hooks.blocks(trained, ["3_2", "5_3"])
    assert [block.name for block in here] == ["3_2"] and lacking == ["5_3"]
    with ready(trained) as opened:
        made = hooks.mean_weights(opened, here, "")
        every = [
            (image[None], int(target))
            for batch in opened.val.epoch(0)
            for image, target in zip(*batch[:2], strict=True)
        ]
        model: Any = opened.model
        branch = model.layer2[1].bn2
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
        counts = torch.zeros(10, dtype=torch.float64)
        sums: dict[str, torch.Tensor] = {}
        with hooks.recording(opened.model) as recorded, torch.no_grad():
            opened.model(cut.images)
            hooks._add(cut, here, recorded.signals, sums, counts)
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
        made = hooks.mean_weights(opened, [hooks.Block("2_1", "layer1.0.bn2")], "")
    three, seven, all_of_them = (line.get_ydata() for line in picture.axes[0].lines)
    assert np.allclose(three, made.means["2_1"][3]) and np.allclose(seven, made.means["2_1"][7])
    assert np.allclose(all_of_them, made.means["2_1"].mean(0))

    picture, _ = draw("eca/6", runs=folders[:1], images=[5, 17, 200])
    assert sum(bool(axes.images) for axes in picture.axes) == 3
    assert sum(len(axes.lines) for axes in picture.axes) == 3 * 3  # GAP 2_3, 3_2 and 4_3: resnet20 has no more
    assert "resnet20 has no attention at 3_4, 4_6, 5_3" in shown_text(picture)


def test_the_similarity_of_images_is_their_mean_correlation() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [2.0, 1.0, 0.0]])
    assert channels.similarity(values) == pytest.approx((1 - 1 - 1) / 3)


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
        drawn = [np.asarray(line.get_ydata()) for line in axes.lines]
        assert [list(y) for y in drawn] == [[0.1, *(epoch[path]["mean"] for epoch in lines)] for path in paths]
    model: Any = load_run(folder).model
    weights = model.layer2[0].conv1.attention.lambda_.detach()
    (learned,) = lambdas.learned(results.find([str(folder)]))
    place = learned.places[0]
    assert (place.role, place.depth) == ("conv1", 1)
    assert place.last["mean"] == pytest.approx(float(weights.mean()), abs=1e-6)
    assert place.last["max"] == pytest.approx(float(weights.max()), abs=1e-6)
    assert len(set(place.means)) == 3  # it changes
    assert "backbone=resnet20" in title


def test_learned_lambda_is_a_mean_over_seeds_as_far_as_all_of_them_have_come(leave: Leave) -> None:
    """The second seed stopped after two of three epochs."""
    folders = []
    for seed, epochs in ((0, 3), (1, 2)):
        folder = leave([*TINY, "attention=sb", "placement.stages=[2]", "attention.lambda_init=0.5"], seed, 50.0)
        lines = []
        for epoch in range(1, epochs + 1):
            numbers = {name: 10.0 * seed + epoch + k / 10 for k, name in enumerate(("mean", "std", "min", "max"))}
            paths = [f"layer2.{block}.{conv}.attention" for block in range(3) for conv in ("conv1", "conv2")]
            lines.append({"epoch": epoch, "lambda": dict.fromkeys(paths, numbers)})
        (folder / "gauges.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(str(folder))
    (learned,) = lambdas.learned(results.find(folders))
    assert learned.seeds == [0, 1] and len(learned.places) == 6
    for place in learned.places:
        assert place.means == pytest.approx([0.5, 6.0, 7.0])  # the initial value, then (1 + 11) / 2, (2 + 12) / 2
        assert place.last == pytest.approx({"mean": 7.0, "std": 7.1, "min": 7.2, "max": 7.3})


@pytest.mark.parametrize(
    ("name", "attention", "error", "message"),
    [
        ("eca/7", "none", ConfigError, "none of 1 runs matches a row of eca/7"),
        ("eca/6", "none", ConfigError, "no attention in this network"),
        ("sb/learned_lambda", "eca", DataError, "none of 1 runs recorded a lambda"),
    ],
)
def test_a_run_without_what_a_figure_shows_is_refused(
    draw: Draw, ran: dict[str, Config], name: str, attention: str, error: type[Failure], message: str
) -> None:
    with pytest.raises(error, match=message):
        draw(name, runs=[ran[attention].run_folder])


def test_blocks_images_and_classes_that_are_not_there_are_named(draw: Draw, ran: dict[str, Config]) -> None:
    folder = [ran["eca"].run_folder]
    for name, options, message in (
        ("eca/6", {"blocks": ["9_9"]}, "no attention at block 9_9 .*2_1, 2_2"),
        ("eca/6", {"images": [359]}, "there is no image 359 .*use 0 to 358"),
        ("eca/7", {"classes": ["cat"]}, "unknown class cat .*choose from classes such as 0, 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw(name, runs=folder, **options)
