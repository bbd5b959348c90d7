"""A run's result.json, compared with the lines that the run wrote for each epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from attnbench.config import composition
from attnbench.models import fused
from attnbench.models.insertion import Attended
from attnbench.runs import run
from attnbench.training.recorder import read_metrics

SITES = 3  # blocks of a ResNet of depth 8
EPOCHS = 3


class Ran(NamedTuple):
    """A finished run: its folder, its result, and how often each site was computed by the backend ``auto``."""

    folder: Path
    result: dict[str, Any]
    automatic: Counter[int]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    automatic: Counter[int] = Counter()
    auto = fused.BACKENDS["auto"]

    def counted(site: Attended, x: Tensor) -> Tensor:
        automatic[id(site)] += 1
        return auto(site, x)

    overrides = ["runtime.device=cpu", "dataset.size=4", "batch_size=512", "backbone=resnet20", "backbone.depth=8"]
    overrides += ["attention=eca", f"schedule.epochs={EPOCHS}"]
    config = composition.compose([*overrides, f"paths.outputs={tmp_path_factory.mktemp('outputs')}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fused.BACKENDS, "auto", counted)
        result = run.train(config)
    return Ran(config.run_folder, result, automatic)


def test_speeds_are_the_median_epochs(ran: Ran) -> None:
    lines = read_metrics(ran.folder / "metrics.jsonl")
    for name in ("images_per_s", "val_images_per_s"):
        speeds = [line[name] for line in lines]
        assert len(set(speeds)) == EPOCHS  # so that the median is neither the largest nor the smallest
        assert ran.result[name] == pytest.approx(median(speeds))


def test_accuracies_are_the_last_epochs_and_the_best_one_is_named(ran: Ran) -> None:
    lines = read_metrics(ran.folder / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert ran.result["epochs"] == EPOCHS
    for name in ("top1", "top5"):
        assert ran.result[name] == pytest.approx(lines[-1][name])
    accuracies = [line["top1"] for line in lines]
    assert ran.result["best_top1"] == pytest.approx(max(accuracies), abs=1e-6)
    assert ran.result["best_epoch"] == 1 + accuracies.index(max(accuracies))


def test_parameters_are_those_of_the_weights_that_are_kept(ran: Ran) -> None:
    state = torch.load(ran.folder / "checkpoints" / "last.pt", weights_only=True)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    kept = {name: tensor for name, tensor in state["model"].items() if not name.endswith(statistics)}
    assert ran.result["params"] == sum(tensor.numel() for tensor in kept.values())
    assert 0 < ran.result["seconds"] == state["seconds"] < 300


def test_every_site_of_a_run_takes_the_fast_way(ran: Ran) -> None:
    assert len(ran.automatic) == SITES
    assert min(ran.automatic.values()) >= EPOCHS
