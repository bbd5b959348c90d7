"""A network starts from the weights of a run or a file, whatever names they have, and says what it did not find."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from attnbench import create_model
from attnbench.base.errors import ConfigError, OtherData, StorageError
from attnbench.config.configuration import Config
from attnbench.models import factory, weights
from attnbench.runs import run
from attnbench.runs.data import DataCheck
from attnbench.runs.status import finished, run_status

Compose = Callable[..., Config]
SMALL = ["backbone=resnet20", "backbone.depth=8", "dataset.size=4", "schedule.epochs=1", "runtime.device=cpu"]


def started(compose: Compose, classes: int, *overrides: str) -> dict[str, Tensor]:
    """The state dict of a new network."""
    torch.manual_seed(1)
    return factory.network(compose(*overrides), classes)[0].state_dict()


def stock(classes: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return dict(models.resnet18(num_classes=classes).state_dict())


def test_a_stock_file_gives_the_trunk_and_leaves_attention_new(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = stock()
    torch.save({"state_dict": {f"module.{key}": value for key, value in given.items()}}, tmp_path / "r18.pth")
    with caplog.at_level(logging.INFO, "attnbench"):
        ours = started(compose, 7, "backbone=resnet18", "attention=se", f"backbone.weights={tmp_path / 'r18.pth'}")
    assert torch.equal(ours["layer1.0.bn2.trunk.weight"], given["layer1.0.bn2.weight"])
    assert torch.equal(ours["layer4.1.conv2.weight"], given["layer4.1.conv2.weight"])
    assert torch.equal(ours["fc.weight"], given["fc.weight"])
    fresh = started(compose, 7, "backbone=resnet18", "attention=se")
    assert torch.equal(ours["layer1.0.bn2.attention.reduce.weight"], fresh["layer1.0.bn2.attention.reduce.weight"])
    said = "122 tensors loaded by the stock network's names, none left out, 16 new with random weights"
    assert f"{said} (attention at 8 sites)" in caplog.text


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda given, other: {"net": {f"_orig_mod.{key}": value for key, value in given.items()}, "epoch": 3}, ""),
        (lambda given, other: {"state_dict": {f"model.{key}": value for key, value in given.items()}}, ""),
        (
            lambda given, other: {
                "model": other,
                "model_ema": {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in given.items()}},
            },
            "the moving average in it is taken (model_ema)",
        ),
    ],
    ids=["net", "lightning", "average"],
)
def test_a_checkpoint_of_another_project_is_unwrapped(
    wrap: Callable[..., object], said: str, compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = stock()
    other = {key: torch.zeros_like(value) for key, value in given.items()}
    torch.save(wrap(given, other), tmp_path / "r18.pth")
    with caplog.at_level(logging.INFO, "attnbench"):
        ours = started(compose, 7, "backbone=resnet18", f"backbone.weights={tmp_path / 'r18.pth'}")
    assert all(torch.equal(ours[key], value) for key, value in given.items())
    assert said in caplog.text


def test_other_classes_leave_out_the_classifier_alone(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = stock(classes=7)
    save_file(given, tmp_path / "r18.safetensors")
    with caplog.at_level(logging.INFO, "attnbench"):
        ours = started(compose, 3, "backbone=resnet18", f"backbone.weights={tmp_path / 'r18.safetensors'}")
    assert torch.equal(ours["conv1.weight"], given["conv1.weight"]) and ours["fc.weight"].shape == (3, 512)
    assert "120 tensors loaded by attnbench's names, 2 left out (fc), 2 new with random weights (fc)" in caplog.text


def timms(attention: str | None) -> dict[str, Tensor]:
    import timm
    from timm.layers import SEModule

    layer = partial(SEModule, rd_ratio=1 / 8) if attention == "se" else attention
    arguments = {"block_args": {"attn_layer": layer}} if attention else {}
    return dict(timm.create_model("resnet18", num_classes=7, **arguments).state_dict())


def ours(attention: str = "eca") -> dict[str, Tensor]:
    return dict(create_model("resnet18", attention, num_classes=7).state_dict())


def released() -> dict[str, Tensor]:
    pairs = ((key.replace("bn2.attention.conv", "eca.conv"), value) for key, value in ours().items())
    return {key.replace(".trunk.", "."): value for key, value in pairs}


def under(prefix: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in given.items()}


BESIDE = {"criterion.weight": torch.ones(7), "val_acc.correct": torch.zeros(1)}

# A ResNet-18 has 122 tensors: 6 of the stem, 96 of 8 blocks, 18 of 3 shortcuts and 2 of the classifier. ECA adds 8, SE
# adds 16, or 32 with biases.
LAYOUTS: dict[str, tuple[Callable[[], object], str, str]] = {
    "torchvision": (stock, "none", "122 tensors loaded by attnbench's names, none left out, none new"),
    "timm": (lambda: timms(None), "none", "122 tensors loaded by attnbench's names, none left out, none new"),
    "timm se": (
        lambda: timms("se"),
        "se attention.bias=true attention.reduction=8",
        "154 tensors loaded by timm's names, none left out, none new",
    ),
    "timm eca": (lambda: timms("eca"), "eca", "130 tensors loaded by timm's names, none left out, none new"),
    "stock for eca": (
        lambda: {"state_dict": under("module.", stock())},
        "eca",
        "122 tensors loaded by the stock network's names, none left out, "
        "8 new with random weights (attention at 8 sites)",
    ),
    "released": (
        lambda: {"state_dict": under("module.", released()), "epoch": 97, "best_prec1": torch.tensor(70.0)},
        "eca",
        "130 tensors loaded by ECA-Net's names, none left out, none new",
    ),
    "ours": (ours, "eca", "130 tensors loaded by attnbench's names, none left out, none new"),
    "ours, compiled in DDP": (
        lambda: {"net": under("module._orig_mod.", ours())},
        "eca",
        "130 tensors loaded by attnbench's names, none left out, none new",
    ),
    "lightning": (
        lambda: {"state_dict": under("model.", ours()) | BESIDE, "pytorch-lightning_version": "2.5", "epoch": 3},
        "eca",
        "130 tensors loaded by attnbench's names, 2 left out (criterion.weight, val_acc.correct), none new",
    ),
    "lightning in DDP": (
        lambda: {"state_dict": under("net.module.", stock()) | BESIDE},
        "none",
        "122 tensors loaded by attnbench's names, 2 left out (criterion.weight, val_acc.correct), none new",
    ),
    "average": (
        lambda: {"model": under("module.", {k: v * 0 for k, v in stock().items()}), "ema": under("module.", stock())},
        "none",
        "122 tensors loaded by attnbench's names, none left out, none new",
    ),
    "a checkpoint of ours": (
        lambda: {
            "model": {key: value * 0 for key, value in ours().items()},
            "average": {"n_averaged": torch.tensor(9), **under("module.", ours())},
            "epoch": 3,
        },
        "eca",
        "130 tensors loaded by attnbench's names, none left out, none new",
    ),
}


@pytest.mark.parametrize("classes", [7, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_log_counts_what_is_loaded_left_out_and_new(
    layout: str, classes: int, compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, attention, said = LAYOUTS[layout]
    torch.save(make(), tmp_path / "given.pth")
    given = weights.read(tmp_path / "given.pth")
    words = ["backbone=resnet18", *f"attention={attention}".split(), f"backbone.weights={tmp_path / 'given.pth'}"]
    with caplog.at_level(logging.INFO, "attnbench"):
        state = started(compose, classes, *words)
    if classes == 3:
        said = without_head(said)
    assert caplog.messages[-1].endswith(f"given.pth: {said}")
    conv1 = next(value for key, value in given.items() if key.endswith("conv1.weight") and "layer" not in key)
    assert conv1.any()  # the average, where the weights themselves are zero
    assert torch.equal(state["conv1.weight"], conv1) and state["fc.weight"].shape == (classes, 512)


def without_head(said: str) -> str:
    """What the log says if the classifier has other classes: its two tensors are left out, and new."""
    loaded, left, new = re.fullmatch(r"(\d+) (?:.*?), (none|\d+) left out.*?, (none|\d+) new.*", said).groups()  # type: ignore[union-attr]
    layout = said.partition("loaded by ")[2].partition(" names")[0]
    others = said.partition("left out (")[2].partition(")")[0]
    sites = said.partition("weights (")[2].partition(")")[0]
    counts = [int(loaded) - 2, 2 + int(left.replace("none", "0")), 2 + int(new.replace("none", "0"))]
    both = [", ".join(filter(None, ["fc", some])) for some in (others, sites)]
    return (
        f"{counts[0]} tensors loaded by {layout} names, {counts[1]} left out ({both[0]}), "
        f"{counts[2]} new with random weights ({both[1]})"
    )


class Foreign:
    """A pickled object that torch refuses to load."""


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "no weights: the file is empty"),
    "cut off": (
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        "damaged, not weights, or not safe to load: Pytorch",
    ),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 20), "damaged, not weights, or not safe to load: "),
    "a web page": (
        lambda path: path.write_text("<!DOCTYPE html>\n<html></html>"),
        "no weights: the file is a web page",
    ),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "a pointer of Git LFS, without the weights themselves",
    ),
    "a whole module": (lambda path: torch.save(Foreign(), path), "Foreign was not an allowed global by default"),
    "no tensors": (lambda path: torch.save({"a": 1}, path), "no state dict in this file"),
}


OF_TORCH = ("a whole module", "no tensors")  # safetensors cannot hold these


@pytest.mark.parametrize(
    ("damage", "suffix"),
    [*((damage, "pth") for damage in BROKEN), *((d, "safetensors") for d in BROKEN if d not in OF_TORCH)],
)
def test_a_broken_file_is_named_with_the_whole_reason(
    damage: str, suffix: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / f"given.{suffix}"
    torch.save(models.mobilenet_v3_small().state_dict(), path)
    if suffix == "safetensors":
        save_file(models.mobilenet_v3_small().state_dict(), path)
    damaged, said = BROKEN[damage]
    damaged(path)
    if suffix == "safetensors" and "damaged" in said:
        said = "damaged, or not a safetensors file: "
    end = command("train", *SMALL, f"backbone.weights={path}")
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("error:")]
    assert end.returncode == 5 and said in line and str(path) in line
    assert not [word for word in ("\x1b", "unexpected", "Re-running") if word in end.stderr]


def test_a_released_eca_net_starts_a_detector(compose: Compose, tmp_path: Path) -> None:
    """The slots of the released ECA-Nets: ``layer1.0.eca.conv.weight`` beside ``layer1.0.bn2``."""
    model = create_model("resnet18", "eca", attention_kwargs={"kernel_size": [3, 5, 7, 7]})
    given = {
        key.replace("bn2.attention.conv", "eca.conv").replace(".trunk.", "."): torch.randn_like(value.float()).to(value)
        for key, value in model.state_dict().items()
    }
    assert "layer2.1.eca.conv.weight" in given
    torch.save(given, tmp_path / "eca.pth.tar")
    detect = ["task=detection", "detector=faster_rcnn_small", "backbone=resnet18", "attention=eca"]
    given_by = f"backbone.weights={tmp_path / 'eca.pth.tar'}"
    ours = started(compose, 10, *detect, "attention.kernel_size=[3,5,7,7]", given_by)
    body = "backbone.body."
    assert torch.equal(ours[f"{body}layer2.1.bn2.attention.conv.weight"], given["layer2.1.eca.conv.weight"])
    assert torch.equal(ours[f"{body}layer4.1.bn2.trunk.running_var"], given["layer4.1.bn2.running_var"])
    with pytest.raises(StorageError, match=r"layer1.0.eca.conv.weight 1x1x3 for 1x1x5"):
        started(compose, 10, *detect, "attention.kernel_size=5", given_by)


def test_a_file_of_another_network_is_refused_whole(compose: Compose, tmp_path: Path) -> None:
    torch.save(dict(models.resnet34(num_classes=7).state_dict()), tmp_path / "r34.pth")
    with pytest.raises(StorageError, match="the weights do not fit: unexpected layer1.2"):
        started(compose, 7, "backbone=resnet18", f"backbone.weights={tmp_path / 'r34.pth'}")


def test_a_run_starts_from_a_run_of_its_own_seed_and_records_its_digest(compose: Compose, tmp_path: Path) -> None:
    first = [compose(*SMALL, "attention=eca", f"seed={seed}") for seed in (0, 1)]
    for one in first:
        run.train(one)
    group = first[0].group_folder
    second = [compose(*SMALL, "attention=eca", f"seed={seed}", f"backbone.weights={group}") for seed in (0, 1)]
    assert second[0].group_folder == second[1].group_folder != group
    for before, after in zip(first, second, strict=True):
        theirs = torch.load(before.run_folder / "checkpoints/last.pt", weights_only=True)["model"]
        ours = factory.network(after, 10)[0].state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    result = run.train(second[1])
    assert result["weights"]["sha256"] == json.loads((first[1].run_folder / "result.json").read_text())["state_sha256"]
    assert result["weights"]["from"] == str(group).partition("/runs/")[2]


def test_a_run_of_another_attention_is_refused_before_anything_is_written(compose: Compose, tmp_path: Path) -> None:
    source = compose(*SMALL, "attention=eca")
    run.train(source)
    other = compose(*SMALL, "attention=se", f"backbone.weights={source.run_folder}")
    with pytest.raises(ConfigError, match="attention: eca there, se here"):
        run.train(other)
    assert not other.run_folder.exists()


def test_an_unfinished_run_is_no_start(compose: Compose, tmp_path: Path) -> None:
    source = compose(*SMALL)
    run.train(source)
    (source.run_folder / "result.json").unlink()
    with pytest.raises(StorageError, match="this run is not finished: its weights are those of epoch 1"):
        run.train(compose(*SMALL, f"backbone.weights={source.run_folder}"))


def test_missing_weights_are_named(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no such run or file of weights \(.*nowhere\)"):
        run.train(compose(*SMALL, f"backbone.weights={tmp_path / 'nowhere'}"))


def test_a_finished_run_is_not_shown_for_other_weights_of_the_same_name(compose: Compose, tmp_path: Path) -> None:
    source = compose(*SMALL)
    run.train(source)
    config = compose(*SMALL, f"backbone.weights={source.run_folder}")
    run.train(config)
    assert finished(config) and run_status(config, DataCheck()).state == "done"
    run.train(compose(*SMALL, "resume=never"))  # once more, with the same result
    assert finished(config)
    other = compose(*SMALL, "schedule.lr=0.2")
    run.train(other)
    (source.run_folder / "result.json").write_bytes((other.run_folder / "result.json").read_bytes())
    with pytest.raises(OtherData, match="started from other weights"):
        finished(config)
    assert run_status(config, DataCheck()).state == "other weights"
    shutil.rmtree(source.run_folder)
    status = run_status(config, DataCheck())
    assert status.state == "done" and "not there to compare" in status.unseen
