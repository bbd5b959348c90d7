"""Two processes make one run, as torchrun starts them: one folder, one stream of samples, one network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from attnbench.config.configuration import Config
from attnbench.data.in_memory.digits import digits
from attnbench.data.loader import Loader
from attnbench.models import factory
from attnbench.training import engine, setup
from attnbench.training.feed import Feed
from attnbench.training.optim import Schedule
from attnbench.training.recorder import NullRecorder
from attnbench.training.runtime import Process, Runtime
from attnbench.training.tasks.classification import Classification
from tests.small_runs import (
    SMALL,
    STEPS,
    ForkServer,
    ended,
    epochs,
    folder,
    in_two_processes,
    result,
    running,
    strays,
)

IMAGES = 1438  # to train on
VALIDATION = 359  # images: two processes cannot share them evenly


@pytest.fixture(scope="session")
def two_processes(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of an uninterrupted run of SMALL in two processes."""
    outputs = tmp_path_factory.mktemp("two-processes")
    end = forks.run(outputs, before=in_two_processes)
    assert end.code == 0, end.stderr
    (outputs / "stderr").write_text(end.stderr)
    return outputs


def test_two_processes_write_one_folder_and_one_log(two_processes: Path) -> None:
    assert epochs(two_processes) == [1, 2]
    assert result(two_processes)["world_size"] == 2
    assert result(two_processes)["epochs"] == 2
    assert len(list((folder(two_processes) / "tb").iterdir())) == 1
    assert (two_processes / "stderr").read_text().count("epoch 2/2") == 1
    assert (folder(two_processes) / "train.log").read_text().count("epoch 2/2") == 1
    assert strays(two_processes) == []
    assert len(torch.load(folder(two_processes) / "checkpoints" / "last.pt", weights_only=True)["rng"]) == 2


def test_two_processes_evaluate_every_sample_once(two_processes: Path, compose: Callable[..., Config]) -> None:
    """One process evaluates the saved weights to the same values, to the last sample."""
    config = compose(*SMALL)
    saved = torch.load(folder(two_processes) / "checkpoints" / "last.pt", weights_only=True)
    data = config.build("dataset")
    assert len(data.val) == VALIDATION
    with config.build("runtime").start() as process:
        model, _ = factory.network(config, len(data.classes))
        state = setup.train_state(process.place(model), config.build("schedule"), process)
        state.load_state_dict(saved)
        alone = engine.evaluation(state, config.build("task"), setup.feeds(config, data, process)[1], process)
    line = json.loads((folder(two_processes) / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("top1", "top5"):
        assert line[name] == pytest.approx(alone[name], abs=1e-6)
        hits = line[name] * VALIDATION / 100
        assert hits == pytest.approx(round(hits), abs=1e-4)
    assert line["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-5)


def test_two_processes_that_are_stopped_and_killed_end_as_if_they_had_not_been(
    two_processes: Path, forks: ForkServer, tmp_path: Path
) -> None:
    """First they are started by ``runtime.processes``, then by torchrun."""

    def status() -> dict[str, Any]:
        return json.loads((folder(tmp_path) / "status.json").read_text())

    with running(tmp_path, "runtime.processes=2") as launcher:
        launcher.terminate()
        end = ended(launcher)
        assert status()["status"] == "stopped", end.stderr
        assert end.errors == ["error: stopped by a signal; run the same command to continue"]
    with running(tmp_path, processes=2) as launcher:
        os.kill(status()["pid"], signal.SIGKILL)
        began = time.monotonic()
        assert ended(launcher).code != 0
        assert time.monotonic() - began < 30
        assert status()["status"] == "running"
    end = forks.run(tmp_path, before=in_two_processes)
    assert end.code == 0, end.stderr
    assert result(tmp_path)["resumed_from_step"] > 3 and result(tmp_path)["world_size"] == 2
    assert (folder(tmp_path) / "train.log").read_text().count("resumed from step") == 2
    assert result(tmp_path)["state_sha256"] == result(two_processes)["state_sha256"]
    assert epochs(tmp_path) == [1, 2]


def test_one_process_finishes_what_two_began(two_processes: Path, forks: ForkServer, tmp_path: Path) -> None:
    """Dropout then draws other numbers, and a warning says so."""
    shutil.copytree(two_processes / "runs", tmp_path / "runs")
    (folder(tmp_path) / "result.json").unlink()
    (folder(tmp_path) / "checkpoints" / "last.pt").unlink()  # the one before it is from the end of epoch 2
    end = forks.run(tmp_path)
    assert end.code == 0, end.stderr
    assert "the checkpoint is from 2 processes and this run has 1" in end.stderr
    assert result(tmp_path)["resumed_from_step"] == 2 * STEPS
    assert result(tmp_path)["world_size"] == 1


@pytest.mark.parametrize("override", ["runtime.sync_bn=true", "runtime.device=cuda:99"])
def test_what_the_machine_cannot_do_is_refused_before_anything_is_made(
    forks: ForkServer, tmp_path: Path, override: str
) -> None:
    end = forks.run(tmp_path, override)
    key = override.split("=")[0]
    assert end.code == 2 and len(end.stderr.splitlines()) == 1 and key in end.stderr, end.stderr
    assert list(tmp_path.iterdir()) == []


class Plain(nn.Module):
    """A small network without batch norm, in float64. It learns the same whichever process computes a sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(6 * 4, 10)).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.double())


CLIP = 0.28  # the gradients of some updates have a larger norm, and those of others a smaller one


class Fitted(NamedTuple):
    """The outcome of an epoch: weights, the mean loss, and how many times gradients were exchanged."""

    weights: dict[str, Tensor]
    loss: float
    exchanges: int


def fitted(accumulate: int = 1, batch_size: int = 63) -> Fitted:
    """Train for an epoch of digits in this process."""
    with Runtime(device="cpu").start() as process:
        return fitted_in(process, accumulate, batch_size)


def fitted_in(process: Process, accumulate: int, batch_size: int) -> Fitted:
    pace: Any = {"law": "cosine", "epochs": 1, "lr": 0.1, "per": "step"}
    decay: Any = {"weight_decay": 0.01, "no_decay": ["bias"]}
    schedule = Schedule(**pace, **decay, accumulate=accumulate, ema_decay=0.5, clip_grad_norm=CLIP)
    data, task = digits(size=4, pad=1), Classification(label_smoothing=0.1)
    ranks: Any = {"rank": process.rank, "world_size": process.world_size}
    loader = Loader(data.train, batch_size=batch_size, seed=1, train=True, **ranks)
    model = process.place(Plain())
    network = process.wrap(model)
    exchanged: list[object] = []
    if process.ddp is not None:
        # A lambda, as DDP refuses annotations that are strings.
        process.ddp.register_comm_hook(exchanged, lambda kept, bucket: _exchange(kept, bucket))
    state = setup.train_state(model, schedule, process)
    losses: dict[str, float] = {}
    engine.fit(
        state,
        network,
        task,
        Feed(loader, process, data.mean, data.std),
        lambda: {"top1": 0.0},
        schedule=schedule,
        batch_size=batch_size,
        process=process,
        recorder=NullRecorder(),
        saver=Recording(losses),  # type: ignore[arg-type]
    )
    return Fitted(state.evaluated.state_dict(), losses["train_loss"], len(exchanged))


def _exchange(exchanged: list[object], bucket: Any) -> torch.futures.Future[Tensor]:
    """Add up gradients over the processes as usual, and count the exchanges."""
    exchanged.append(bucket)
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]


class Recording:
    """A saver that keeps an epoch's metrics instead of saving."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self.metrics = metrics

    def after_step(self, state: object) -> None: ...

    def after_epoch(self, state: object, metrics: dict[str, float]) -> None:
        self.metrics.update(metrics)


def assert_close(ours: Fitted, theirs: Fitted) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)  # summed in float32
    for name, tensor in ours.weights.items():
        torch.testing.assert_close(tensor, theirs.weights[name], rtol=0, atol=1e-12)


# Pairs of parts and batch size. Of 67 samples, the processes get 34 and 33; of the last batch, 16 and 15.
# With batches of 717, the last one has 4.
DIVIDED = [(1, 63), (16, 67), (33, 67), (5, 717)]


@pytest.fixture(scope="module")
def by_two(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Fitted]:
    """The outcome of an epoch in two processes, for each entry of DIVIDED."""
    path = tmp_path_factory.mktemp("two") / "fitted.pt"
    end = forks.run(path.parent, before=partial(fit_in_two_processes, path))
    assert end.code == 0, end.stderr
    left = torch.load(path, weights_only=True)
    return {divided: Fitted(*one) for divided, one in zip(DIVIDED, left, strict=True)}


def fit_in_two_processes(path: Path) -> None:
    """In a forked process: write the outcomes of DIVIDED instead of training the run that was requested."""
    in_two_processes()
    with Runtime(device="cpu").start() as process:
        left = [tuple(fitted_in(process, *divided)) for divided in DIVIDED]
    if process.rank == 0:
        torch.save(left, path)
    os._exit(0)


@pytest.mark.parametrize(("accumulate", "batch_size"), DIVIDED)
def test_two_processes_learn_what_one_learns_of_whole_batches(
    by_two: dict[tuple[int, int], Fitted], accumulate: int, batch_size: int
) -> None:
    """With any number of parts, and a last batch with fewer samples than parts. Gradients are exchanged once a step."""
    ours = by_two[accumulate, batch_size]
    assert_close(ours, fitted(batch_size=batch_size))
    assert ours.exchanges == -(-IMAGES // batch_size)


@pytest.mark.parametrize("parts", [2, 3, 63])
def test_a_batch_in_parts_makes_the_update_of_the_whole(parts: int) -> None:
    assert_close(fitted(accumulate=parts), fitted())


def test_another_batch_size_makes_another_update() -> None:
    """A control: the outcomes that the two tests above compare can differ."""
    with pytest.raises(AssertionError):
        assert_close(fitted(batch_size=62), fitted())
