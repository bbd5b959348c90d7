"""Frozen parts and parts with their own rate, in runs as a user starts them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnbench.config import composition
from attnbench.launch.packing import packs
from attnbench.models import factory, freezing, fused
from attnbench.models.stacking import mistake
from attnbench.training.optim import Schedule
from tests.small_runs import ForkServer, folder, killed_at, result

Command = Callable[..., subprocess.CompletedProcess[str]]
WORDS = ["backbone=resnet20", "backbone.depth=8", "dataset.size=8", "batch_size=128", "schedule.epochs=1"]
WORDS += ["runtime.device=cpu", "attention=eca"]


def weights(run: Path) -> dict[str, Tensor]:
    return dict(torch.load(run / "checkpoints/last.pt", weights_only=True)["model"])


def initial(*words: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return factory.network(composition.compose([*WORDS, *words]), 10)[0].state_dict()


@pytest.mark.parametrize(
    ("attention", "tail"), [("eca", "auto"), ("eca", "algebraic"), ("sb", "auto"), ("sb", "fused")]
)
def test_frozen_stages_keep_weights_and_statistics_and_the_rest_is_trained(
    attention: str, tail: str, command: Command, tmp_path: Path
) -> None:
    words = [*WORDS, f"attention={attention}", "schedule.freeze=[stem,stage1]"]
    end = command("train", *words, f"runtime.tail={tail}")
    assert end.returncode == 0, end.stderr
    before, after = initial(*words), weights(folder(tmp_path / "outputs"))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == {key for key in before if key.startswith(("conv1.", "bn1.", "layer1."))}
    content = json.loads((folder(tmp_path / "outputs") / "result.json").read_text())
    learned = {key: value for key, value in before.items() if key.endswith(("weight", "bias", "lambda_"))}
    added = sum(value.numel() for key, value in learned.items() if "layer1" in key and ".attention." in key)
    assert attention != "eca" or added == 3  # k
    assert content["frozen_params"] == 16 * 27 + 32 + 2 * (16 * 16 * 9 + 32) + added  # stem, two layers, attention


def test_only_attention_and_head_train_with_the_trunk_frozen(command: Command, tmp_path: Path) -> None:
    end = command("train", *WORDS, "schedule.freeze=[trunk]", "schedule.ema_decay=0.9")
    assert end.returncode == 0, end.stderr
    before, after = initial(), weights(folder(tmp_path / "outputs"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fc.weight", "fc.bias"} | {key for key in before if ".attention." in key}


def test_parts_with_their_own_rate_go_as_far_as_it_says(command: Command, tmp_path: Path) -> None:
    """One update without momentum and decay: w - lr g, so steps differ by the factors alone."""
    plain = [*WORDS, "batch_size=1437", "schedule.momentum=0", "schedule.weight_decay=0", "schedule.warmup_from=0.5"]
    scale = "schedule.lr_scale={head: 10, attention: 5, stage2: 0.5, layer3.0.conv1: 3}"
    steps = []
    for number, words in enumerate(([], [scale])):
        end = command("train", *plain, *words, f"paths.outputs={tmp_path / str(number)}")
        assert end.returncode == 0, end.stderr
        before, after = initial(), weights(folder(tmp_path / str(number)))
        trained = [key for key in before if key.endswith((".weight", ".bias"))]
        steps.append({key: (after[key] - before[key]).double() for key in trained})
    run = folder(tmp_path / "1")
    logged = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([0.05])  # the rate itself, not that of a part
    for key, step in steps[1].items():
        factor = 10 if key.startswith("fc") else 5 if ".attention." in key else 0.5 if key.startswith("layer2") else 1
        factor = 3 if key == "layer3.0.conv1.weight" else factor
        torch.testing.assert_close(step, factor * steps[0][key], rtol=2e-3, atol=2e-7, msg=key)


def test_a_resume_of_a_run_with_frozen_and_scaled_parts_is_exact(forks: ForkServer, tmp_path: Path) -> None:
    words = ["schedule.freeze=[stem,stage1]", "schedule.lr_scale={head: 10, attention: 5}", "schedule.no_decay=[bias]"]
    assert forks.run(tmp_path / "whole", *words).code == 0
    forks.run(tmp_path / "killed", *words, before=lambda_killed)
    end = forks.run(tmp_path / "killed", *words)
    assert end.code == 0, end.stderr
    whole, killed = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert killed["resumed_from_step"] > 0 and killed["state_sha256"] == whole["state_sha256"]


def lambda_killed() -> None:
    killed_at(1, 5)


def test_a_detector_freezes_by_the_same_names(command: Command, tmp_path: Path) -> None:
    words = ["task=detection", "detector=faster_rcnn_small", "dataset.train_images=4", "dataset.val_images=2"]
    model = factory.network(composition.compose([*words[:2], "detector.frozen_stages=0"]), 10)[0]
    own = factory.network(composition.compose([*words[:2], "detector.frozen_stages=2"]), 10)[0]
    freezing.freeze(model, freezing.find(model, ["stem", "stage1", "stage2"]))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in own.parameters()]
    own.train()
    model.train()
    freezing.hold(model, freezing.find(model, ["stem", "stage1", "stage2"]))
    theirs = {name: module.training for name, module in own.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert theirs == {name: m.training for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(theirs.values()) == {True, False}


def test_networks_with_frozen_parts_are_stacked_and_packed_only_with_their_like() -> None:
    config = composition.compose([*WORDS, "schedule.freeze=[stem,stage1]"])
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = factory.network(config, 10)[0]
        freezing.freeze(model.train(), freezing.find(model, ["stem", "stage1"]))
        fused.choose(model, "reference")
        models.append(model)
    assert mistake(models, torch.rand(2, 4, 3, 8, 8)) == ""
    frozen = ["schedule.freeze=[stem]"]
    texts: tuple[list[str], ...] = ([], frozen, [*frozen, "schedule.lr_scale={head: 2}"])
    members: Any = [type("M", (), {"config": composition.compose([*WORDS, *words])})() for words in texts]
    assert packs(members, 1, None) == [members[:1], members[1:]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schedule.freeze=[steam]"], "this network has no part steam (schedule.freeze); did you mean stem? there are"),
        (["schedule.freeze=[trunk,head,attention]"], "nothing is left to train (schedule.freeze)"),
        (["schedule.lr_scale={heads: 10}"], "this network has no part heads (schedule.lr_scale); did you mean head?"),
        (["schedule.lr_scale={head: 0}"], "must be greater than 0"),
        (["schedule.lr_scale=[head]"], "schedule.lr_scale); it is names with a number > 0 each, such as {name: 1}"),
        (["schedule.freeze=stem"], "it is a list of text or null"),
    ],
)
def test_parts_that_do_not_exist_are_refused_before_anything_is_written(
    words: list[str], said: str, command: Command, tmp_path: Path
) -> None:
    end = command("train", *WORDS, *words)
    assert end.returncode == 2 and said in end.stderr, end.stderr
    assert not (tmp_path / "outputs").exists()


def test_without_scales_the_groups_are_as_before() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    (group,) = Schedule(law="cosine", epochs=1, lr=0.1).groups(model)
    assert set(group) == {"params"} and len(group["params"]) == 4
