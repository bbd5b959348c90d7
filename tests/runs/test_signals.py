"""SIGTERM and SIGINT: the run finishes the step and saves, and the same command continues it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.small_runs import (
    STEPS,
    Ended,
    ForkServer,
    ended,
    epochs,
    folder,
    interrupted_in,
    result,
    running,
    start,
    strays,
    wait_for,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT]


LOSS = "attnbench.training.tasks.classification:Classification.loss"
EVALUATE = "attnbench.training.tasks.classification:tally"


def assert_stopped(end: Ended) -> None:
    """The run has exited with 143, as a shell sees it, and at most one error line."""
    assert end.code in (143, -signal.SIGTERM), end.stderr
    assert "Traceback" not in end.stderr
    assert len(end.errors) <= 1


def assert_saved_at(outputs: Path, epoch: int, step: int) -> None:
    state = torch.load(folder(outputs) / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (epoch, step)
    assert strays(outputs) == []


@pytest.mark.parametrize(
    ("kind", "where", "call", "epoch", "step"),
    [
        (signal.SIGTERM, LOSS, 1, 0, 1),
        (signal.SIGINT, LOSS, STEPS + 5, 1, 5),
        (signal.SIGTERM, EVALUATE, 2, 0, STEPS),
        (signal.SIGINT, "attnbench.training.engine:rng_state", 2, 0, 6),  # in the middle of a save
        (signal.SIGTERM, "attnbench.training.checkpoints:Checkpoints.settle", 2, 0, 3),
    ],
)
def test_a_signal_loses_no_step(
    forks: ForkServer,
    reference: dict[str, Any],
    tmp_path: Path,
    kind: signal.Signals,
    where: str,
    call: int,
    epoch: int,
    step: int,
) -> None:
    end = forks.run(tmp_path, before=partial(interrupted_in, where, call, kind))
    assert end.code == 143, end.stderr
    assert end.errors == ["error: stopped by a signal; run the same command to continue"]
    assert '"status": "stopped"' in (folder(tmp_path) / "status.json").read_text()
    assert_saved_at(tmp_path, epoch, step)
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["resumed_from_step"] == epoch * STEPS + step
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]
    assert epochs(tmp_path) == [1, 2]


def test_a_signal_that_is_passed_on_twice_is_one(forks: ForkServer, tmp_path: Path) -> None:
    assert forks.run(tmp_path, before=interrupted_twice).code == 143
    assert_saved_at(tmp_path, 0, 8)


def interrupted_twice() -> None:
    interrupted_in(LOSS, 8, signal.SIGTERM, then=0.3)
    interrupted_in(LOSS, 8, signal.SIGTERM)


def test_a_second_signal_stops_at_once_and_leaves_the_last_checkpoint(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    stubborn = partial(interrupted_in, LOSS, 8, signal.SIGINT, then=1.2, again=True)
    began = time.monotonic()
    assert forks.run(tmp_path, before=stubborn).code == 143
    assert time.monotonic() - began < 10
    assert_saved_at(tmp_path, 0, 6)
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (signal.SIGINT, "attnbench.runs.environment:environment"),
        (signal.SIGTERM, "attnbench.training.checkpoints:Checkpoints.load"),
        (signal.SIGINT, "attnbench.runs.run:_recorder"),
        (signal.SIGTERM, "attnbench.runs.run:_result"),
    ],
)
def test_a_signal_outside_of_the_training_loop_stops_the_run_too(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path, kind: signal.Signals, where: str
) -> None:
    end = forks.run(tmp_path, before=partial(interrupted_in, where, 1, kind))
    assert end.code == 143 and len(end.errors) == 1, end.stderr
    assert "Traceback" not in end.stderr
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]


def test_a_signal_through_the_command_line_stops_within_seconds(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    """SIGINT; the next test sends SIGTERM."""
    with running(tmp_path) as process:
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        end = ended(process)
        assert time.monotonic() - began < 10
        assert end.code == 143, end.stderr
        assert end.errors == ["error: stopped by a signal; run the same command to continue"]
        assert "Traceback" not in end.stderr
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]
    assert (folder(tmp_path) / "train.log").read_text().count("resumed from step") == 1


@pytest.mark.parametrize("moment", ["a second", "lock"])
def test_a_signal_while_the_command_starts_exits_143(tmp_path: Path, moment: str) -> None:
    ready: dict[str, Callable[[subprocess.Popen[str]], object]] = {
        "a second": lambda process: time.sleep(1),
        "lock": lambda process: wait_for(lambda: any(tmp_path.rglob(".lock")) or process.poll() is not None),
    }
    process = start(tmp_path)
    ready[moment](process)
    process.terminate()
    began = time.monotonic()
    assert_stopped(ended(process))
    assert time.monotonic() - began < 10


IMPORTING = """
import importlib, signal, sys
from attnbench.cli.main import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run with SIGINT ignored
sys.path.insert(0, sys.argv[1])
guarded(lambda: importlib.import_module("brittle"))
"""
BRITTLE = """
import time
try:
    print("importing", flush=True)
    time.sleep(60)
except BaseException:
    raise RecursionError
"""


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_in_an_import_stops_whatever_the_module_makes_of_it(kind: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "brittle.py").write_text(BRITTLE)
    command = [sys.executable, "-c", IMPORTING, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "importing\n"
    process.send_signal(kind)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 143
    assert stderr == "error: stopped before the first step; run the same command to start again\n"
