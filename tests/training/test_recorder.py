"""What a run records: a line for each epoch, what the attention has learned, and the progress."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnbench.base import console
from attnbench.base.console import LINE_SECONDS, clock
from attnbench.training.recorder import FolderRecorder, describe, gauges

STEPS, SAMPLES = 10, 200  # of an epoch


@dataclass
class At:
    """The part of the training state that a recorder reads."""

    step: int
    lr: float = 0.1

    def mean_loss(self) -> float:
        return 0.5


class Learning(nn.Module):
    """A module with gauges."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def gauges(self) -> dict[str, Tensor]:
        return {"lambda": self.values}


Record = Callable[..., FolderRecorder]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Makes recorders in the test's own folder, without a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)

    def made(epoch: int = 0, step: int = 0, shown: Mapping[str, Any] | None = None) -> FolderRecorder:
        return FolderRecorder(
            tmp_path, name="", epoch=epoch, step=step, steps=STEPS, samples=SAMPLES, hparams={}, texts={}, every=1,
            gauges=lambda: shown or {}, pictures=dict,
        )  # fmt: skip

    return made


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the only clock that the recorder reads."""
    now = 1000.0

    def moved(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    return moved


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The lines that the recorder has logged."""
    logger = logging.getLogger("attnbench")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "attnbench")
    return lambda: [record.getMessage() for record in caplog.records]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gauges_are_the_channels_mean_spread_and_ends() -> None:
    """The standard deviation is that of a population, not of a sample: it divides by the number of channels."""
    model = nn.Sequential(Learning([1.0, 3.0]), nn.Linear(2, 2), Learning([-1.0, 0.0, 0.0, 1.0]))
    assert gauges(model) == {
        "lambda": {
            "0": {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0},
            "2": {"mean": 0.0, "std": pytest.approx(0.5**0.5, abs=1e-6), "min": -1.0, "max": 1.0},
        }
    }
    assert gauges(nn.Sequential(Learning([2.0])))["lambda"]["0"]["std"] == 0.0
    assert gauges(nn.Linear(2, 2)) == {}


def test_epochs_are_counted_from_one_in_both_files(record: Record, tmp_path: Path) -> None:
    recorder = record(shown={"lambda": {"0": {"mean": 0.25}}})
    for epoch in range(2):
        recorder.begin(epoch, 2, 0, STEPS)
        recorder.epoch(epoch, {"train_loss": 1.0 / 3, "top1": 50.0})
    recorder.close()
    metrics = {"train_loss": 0.333333, "top1": 50.0}
    assert lines(tmp_path / "metrics.jsonl") == [{"epoch": epoch, **metrics} for epoch in (1, 2)]
    shown = {"lambda": {"0": {"mean": 0.25}}}
    assert lines(tmp_path / "gauges.jsonl") == [{"epoch": epoch, **shown} for epoch in (1, 2)]


def test_a_run_that_goes_on_drops_the_epochs_that_it_repeats_and_no_other(record: Record, tmp_path: Path) -> None:
    recorder = record(shown={"lambda": {}})
    for epoch in range(3):
        recorder.begin(epoch, 4, 0, STEPS)
        recorder.epoch(epoch, {"top1": float(epoch)})
    recorder.close()
    for name in ("metrics.jsonl", "gauges.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"epoch": 4, "to')
    record(epoch=2, step=5).close()  # in the third epoch, which is number 2 from 0
    for name in ("metrics.jsonl", "gauges.jsonl"):
        assert [line["epoch"] for line in lines(tmp_path / name)] == [1, 2]


def test_a_line_inside_a_long_epoch_has_its_speed_and_the_time_left(
    record: Record, tick: Callable[[float], None], logged: Callable[[], list[str]]
) -> None:
    recorder = record()
    recorder.begin(0, 3, 0, STEPS)
    tick(LINE_SECONDS - 1)
    recorder.step(At(1))
    assert logged() == []  # not yet
    tick(6.0)
    recorder.step(At(4))
    # 4 of 10 steps with 200 images took 20 s: 4 images/s; 26 steps are left in three epochs, of 5 s each
    assert logged() == ["epoch 1/3 step 4/10 loss 0.500 4 images/s 0:02:10 left"]


def test_the_speed_of_a_continued_epoch_is_of_the_steps_that_were_done_since(
    record: Record, tick: Callable[[float], None], logged: Callable[[], list[str]]
) -> None:
    recorder = record(epoch=2, step=6)
    recorder.begin(2, 3, 6, STEPS)
    tick(20.0)
    recorder.step(At(8))
    assert logged() == ["epoch 3/3 step 8/10 loss 0.500 2 images/s 0:00:20 left"]


def test_a_terminal_has_a_bar_over_the_whole_run_with_the_same_speed(
    record: Record, tick: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bars: list[tuple[Any, ...]] = []

    def bar(*drawn: Any) -> str:
        bars.append(drawn)
        return "a bar"

    monkeypatch.setattr(console, "bar", bar)
    recorder = record(epoch=1, step=2)
    recorder.begin(1, 3, 2, STEPS)
    tick(20.0)
    recorder.step(At(4))
    recorder.close()
    # 2 of 10 steps with 200 images took 20 s: 2 images/s; 16 steps are left, of 10 s each
    assert bars == [("epoch 2/3", STEPS + 4, 3 * STEPS, "loss 0.500  2 images/s", pytest.approx(160))]


def test_the_line_of_an_epoch(record: Record, logged: Callable[[], list[str]]) -> None:
    recorder = record()
    recorder.begin(0, 2, 0, STEPS)
    recorder.epoch(0, {"train_loss": 0.5, "top1": 91.234, "images_per_s": 1234.5, "lr": 0.1})
    assert logged() == ["epoch 1/2 loss 0.500  top-1 91.23 %  1234 images/s"]
    assert describe({"mAP": 12.5, "AP": 9.0}) == "mAP 12.50 %  AP 9.00 %"
    assert [clock(seconds) for seconds in (0, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]
