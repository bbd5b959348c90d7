"""A run that is killed at any point continues as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbench.base import files
from attnbench.training.checkpoints import ITEMS
from tests.data_fixtures import image_folder
from tests.small_runs import (
    STEPS,
    Ended,
    ForkServer,
    Kill,
    epochs,
    folder,
    interrupted_in,
    killed_at,
    result,
    running,
    strays,
)

KILLS = 20


def forgetting_rng() -> None:
    """In a run's process: do not restore the random number generators."""
    from attnbench.runs import run

    run.set_rng_state = lambda state: None  # type: ignore[attr-defined]


def test_twenty_kills_at_random_moments_leave_no_trace(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    draw = random.Random(0)
    resumed, killed, training = [], 0, reference["training"]
    for attempt in range(2 * KILLS):
        outputs = tmp_path / str(attempt)
        anywhere = attempt % 7 == 6  # including start-up; otherwise between the first checkpoint and the end
        end = forks.run(outputs, kill=Kill(draw.random() * training, after_checkpoint=not anywhere))
        if end.code == 0:
            training = end.seconds  # the run was faster than expected: draw from a shorter time
            continue
        killed += end.code == -signal.SIGKILL
        end = forks.run(outputs)
        assert end.code == 0, end.stderr
        assert result(outputs)["state_sha256"] == reference["state_sha256"]
        assert (folder(outputs) / "predictions.csv").read_bytes() == reference["predictions"]
        assert epochs(outputs) == [1, 2]
        assert strays(outputs) == []
        resumed.append(result(outputs)["resumed_from_step"])
        shutil.rmtree(outputs)
        if killed == KILLS:
            break
    assert killed == KILLS
    assert sum(step > 0 for step in resumed) >= 15
    assert len(set(resumed)) >= 4, "the kills fell on the same few steps"


def test_a_kill_in_the_last_save_leaves_no_trace(forks: ForkServer, reference: dict[str, Any], tmp_path: Path) -> None:
    """The kill comes after the new checkpoint is listed and before it is renamed."""
    assert forks.run(tmp_path).code == 0
    checkpoints = folder(tmp_path) / "checkpoints"
    os.replace(checkpoints / "last.pt", checkpoints / "next.pt")
    os.replace(checkpoints / "previous.pt", checkpoints / "last.pt")
    (folder(tmp_path) / "result.json").unlink()
    assert forks.run(tmp_path).code == 0
    assert strays(tmp_path) == []
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]
    assert sorted(path.name for path in checkpoints.glob("*.pt")) == ["best.pt", "last.pt", "previous.pt"]


def test_a_run_whose_lambda_does_not_decay_continues_as_one_that_was_not_stopped(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    """The optimizer then has two groups of parameters."""
    spared = "schedule.no_decay=[lambda_]"
    assert forks.run(tmp_path / "whole", spared).code == 0
    assert forks.run(tmp_path / "parts", spared, before=partial(killed_at, 0, 5)).code == -signal.SIGKILL
    assert forks.run(tmp_path / "parts", spared).code == 0
    digests = {result(tmp_path / part)["state_sha256"] for part in ("whole", "parts")}
    assert result(tmp_path / "parts")["resumed_from_step"] > 0
    assert len(digests) == 1 and reference["state_sha256"] not in digests


def test_without_its_random_state_a_resumed_run_ends_differently(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    """A control: the digests that the kills are judged by can differ."""
    assert forks.run(tmp_path, before=partial(killed_at, 0, 5)).code == -signal.SIGKILL
    assert forks.run(tmp_path, before=forgetting_rng).code == 0
    assert result(tmp_path)["resumed_from_step"] == 3
    assert result(tmp_path)["state_sha256"] != reference["state_sha256"]


@pytest.mark.parametrize(
    ("epoch", "step", "resumed"),
    [(0, 2, 0), (0, 3, 3), (0, 7, 6), (0, 11, 9), (0, 12, 12), (1, 0, 12), (1, 4, 15), (1, 12, 24), (2, 0, 24)],
)
def test_a_resume_is_exact_at_every_position_of_an_epoch(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path, epoch: int, step: int, resumed: int
) -> None:
    assert forks.run(tmp_path, before=partial(killed_at, epoch, step)).code == -signal.SIGKILL
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["resumed_from_step"] == resumed
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]
    assert {k: result(tmp_path)[k] for k in ("top1", "best_top1", "best_epoch")} == {
        k: reference[k] for k in ("top1", "best_top1", "best_epoch")
    }
    assert epochs(tmp_path) == [1, 2]


def test_a_kill_between_an_epochs_line_and_its_checkpoint_leaves_one_line(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    early = partial(interrupted_in, "attnbench.training.engine:Saver.after_epoch", 1, signal.SIGKILL)
    assert forks.run(tmp_path, before=early).code == -signal.SIGKILL
    assert epochs(tmp_path) == [1]
    assert forks.run(tmp_path).code == 0
    assert epochs(tmp_path) == [1, 2]
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]


def test_two_kills_the_second_through_the_command_line_leave_no_trace(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    assert forks.run(tmp_path, before=partial(killed_at, 0, 4)).code == -signal.SIGKILL
    with running(tmp_path) as process:
        time.sleep(0.05)
        process.kill()
        process.wait()
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]
    assert result(tmp_path)["resumed_from_step"] > 3
    assert (folder(tmp_path) / "train.log").read_text().count("resumed from step") == 2
    assert epochs(tmp_path) == [1, 2]


@pytest.fixture(scope="module")
def checkpointed(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run that was killed after step 8 of the first epoch; its last checkpoint is from step 6."""
    outputs = tmp_path_factory.mktemp("checkpointed")
    assert forks.run(outputs, before=partial(killed_at, 0, 8)).code == -signal.SIGKILL
    return outputs


@pytest.fixture
def mutated(checkpointed: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Makes copies of that run in which the only checkpoint is changed, together with its hash."""

    def mutate(change: Callable[[dict[str, Any]], object]) -> Path:
        outputs = tmp_path / "outputs"
        shutil.copytree(checkpointed, outputs)
        checkpoints = folder(outputs) / "checkpoints"
        (checkpoints / "previous.pt").unlink()
        state = torch.load(checkpoints / "last.pt", weights_only=True)
        change(state)
        torch.save(state, checkpoints / "last.pt")
        (checkpoints / "SHA256SUMS").write_text(f"{files.sha256(checkpoints / 'last.pt')}  last.pt\n")
        return outputs

    return mutate


Mutated = Callable[[Callable[[dict[str, Any]], object]], Path]


def test_a_rewritten_but_unchanged_checkpoint_continues_exactly(
    forks: ForkServer, reference: dict[str, Any], mutated: Mutated
) -> None:
    outputs = mutated(lambda state: None)
    assert forks.run(outputs).code == 0
    assert result(outputs)["resumed_from_step"] == 6
    assert result(outputs)["state_sha256"] == reference["state_sha256"]


@pytest.mark.parametrize("item", ITEMS)
def test_a_checkpoint_that_lacks_an_item_is_refused_by_its_name(forks: ForkServer, mutated: Mutated, item: str) -> None:
    end = forks.run(mutated(lambda state: state.pop(item)))
    assert_refused(end, f"lacks {item}")


def test_a_checkpoint_holds_the_items_and_nothing_else(checkpointed: Path) -> None:
    state = torch.load(folder(checkpointed) / "checkpoints" / "last.pt", weights_only=True)
    assert set(state) == set(ITEMS)


def _no_momentum(state: dict[str, Any]) -> None:
    state["optimizer"]["state"] = {}


def _fresh_average(state: dict[str, Any]) -> None:
    state["average"] = {"n_averaged": torch.tensor(0)} | {f"module.{k}": v for k, v in state["model"].items()}


def _fresh_statistics(state: dict[str, Any]) -> None:
    next(tensor for name, tensor in state["model"].items() if name.endswith("running_mean")).zero_()


def _other_draw(state: dict[str, Any]) -> None:
    state["rng"][0]["torch"] = torch.Generator().manual_seed(5).get_state()


def _step_less(state: dict[str, Any]) -> None:
    state["step"] -= 1


def _epoch_more(state: dict[str, Any]) -> None:
    state["epoch"] += 1


@pytest.mark.parametrize(
    "change", [_no_momentum, _fresh_average, _fresh_statistics, _other_draw, _step_less, _epoch_more]
)
def test_every_item_of_a_checkpoint_matters(
    forks: ForkServer, reference: dict[str, Any], mutated: Mutated, change: Callable[[dict[str, Any]], object]
) -> None:
    outputs = mutated(change)
    end = forks.run(outputs)
    assert end.code == 0, end.stderr
    assert result(outputs)["state_sha256"] != reference["state_sha256"]


def _other_shape(state: dict[str, Any]) -> None:
    state["model"] = {f"{name}_": tensor for name, tensor in state["model"].items()}


def test_a_checkpoint_of_another_network_is_refused(forks: ForkServer, mutated: Mutated) -> None:
    assert_refused(forks.run(mutated(_other_shape)), "belongs to another network")


def test_a_checkpoint_of_another_configuration_is_refused_with_the_keys_that_differ(
    forks: ForkServer, checkpointed: Path, tmp_path: Path
) -> None:
    other = ("schedule.lr=0.05", "attention.dropout=0.1")
    assert forks.run(tmp_path, *other, before=partial(killed_at, 0, 4)).code == -signal.SIGKILL
    for path in (folder(checkpointed) / "checkpoints").iterdir():
        shutil.copy(path, folder(tmp_path) / "checkpoints")
    end = forks.run(tmp_path, *other)
    assert_refused(end, "attention.dropout: 0.2 in the checkpoint, 0.1 now")
    assert_refused(end, "schedule.lr: 0.1 in the checkpoint, 0.05 now")
    assert forks.run(tmp_path, *other, "resume=never").code == 0
    assert result(tmp_path)["resumed_from_step"] == 0


def test_a_finished_run_is_skipped_and_repeated_with_resume_never(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    assert forks.run(tmp_path).code == 0
    before = times()
    assert forks.run(tmp_path).code == 0
    assert times() == before
    assert forks.run(tmp_path, "resume=never").code == 0
    changed = [Path(path).name for path, at in times().items() if before.get(path) != at]
    assert {"result.json", "metrics.jsonl", "train.log", "last.pt", "previous.pt", "best.pt"} <= set(changed)
    assert epochs(tmp_path) == [1, 2]
    assert result(tmp_path)["resumed_from_step"] == 0
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resume_in_low_precision_is_exact(forks: ForkServer, tmp_path: Path, precision: str) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    overrides = (f"runtime.precision={precision}", "schedule.epochs=1")
    assert forks.run(once, *overrides).code == 0
    assert forks.run(twice, *overrides, before=partial(killed_at, 0, 8)).code == -signal.SIGKILL
    assert forks.run(twice, *overrides).code == 0
    assert result(twice)["resumed_from_step"] == 6
    assert result(twice)["state_sha256"] == result(once)["state_sha256"]
    ends = [torch.load(folder(path) / "checkpoints" / "last.pt", weights_only=True) for path in (once, twice)]
    assert ends[0]["scaler"] == ends[1]["scaler"]
    assert bool(ends[0]["scaler"]) == (precision == "fp16")


def test_annealing_continues_at_the_same_point_after_a_resume(forks: ForkServer, tmp_path: Path) -> None:
    """DyConv's temperature is not saved; the run is killed between the last step and the evaluation."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    overrides = ("attention=dyconv", "attention.annealing_epochs=2.0", "schedule.epochs=1")
    assert forks.run(once, *overrides).code == 0
    assert forks.run(twice, *overrides, before=partial(killed_at, 0, STEPS)).code == -signal.SIGKILL
    assert forks.run(twice, *overrides).code == 0
    assert result(twice)["resumed_from_step"] == STEPS
    assert validation_losses(twice) == validation_losses(once)


def test_lambda_is_recorded_once_an_epoch_and_is_the_networks(forks: ForkServer, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert forks.run(once).code == 0
    assert forks.run(twice, before=partial(killed_at, 1, 5)).code == -signal.SIGKILL
    assert forks.run(twice).code == 0
    texts = [(folder(path) / "gauges.jsonl").read_text() for path in (once, twice)]
    assert texts[0] == texts[1]
    lines = [json.loads(line) for line in texts[0].splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    model = torch.load(folder(once) / "checkpoints" / "last.pt", weights_only=True)["model"]
    lambdas = {name.removesuffix(".lambda_"): value for name, value in model.items() if name.endswith("lambda_")}
    assert lines[1]["lambda"].keys() == lambdas.keys()
    for path, value in lambdas.items():
        recorded = lines[1]["lambda"][path]
        numbers = [value.mean().item(), value.min().item(), value.max().item()]
        assert [recorded[name] for name in ("mean", "min", "max")] == pytest.approx(numbers, abs=1e-6)
    assert lines[0]["lambda"] != lines[1]["lambda"]


def validation_losses(outputs: Path) -> list[float]:
    lines = (folder(outputs) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["val_loss"] for line in lines]


def test_any_number_of_workers_makes_one_run_and_may_change_in_its_middle(forks: ForkServer, tmp_path: Path) -> None:
    image_folder(tmp_path / "images", per_class=16, size=(48, 40))
    overrides = ("dataset=imagenet", f"dataset.root={tmp_path / 'images'}", "dataset.size=32", "dataset.resize=36")
    hashes = set()
    for workers in (0, 1, 2, 4):
        outputs = tmp_path / str(workers)
        assert forks.run(outputs, *overrides, "batch_size=8", f"runtime.workers={workers}").code == 0
        hashes.add(result(outputs)["state_sha256"])
    outputs = tmp_path / "killed"
    killed = forks.run(outputs, *overrides, "batch_size=8", "runtime.workers=2", before=partial(killed_at, 1, 3))
    assert killed.code == -signal.SIGKILL
    assert forks.run(outputs, *overrides, "batch_size=8", "runtime.workers=1").code == 0
    assert result(outputs)["resumed_from_step"] == 7
    hashes.add(result(outputs)["state_sha256"])
    assert len(hashes) == 1


def assert_refused(end: Ended, why: str) -> None:
    """The run has exited with 5 and one line that says why."""
    assert end.code == 5, end.stderr
    assert len(end.errors) == 1 and why in end.errors[0], end.stderr
    assert "Traceback" not in end.stderr


def test_small_has_the_steps_that_these_tests_count_on(forks: ForkServer, tmp_path: Path) -> None:
    assert forks.run(tmp_path, "schedule.epochs=1").code == 0
    state = torch.load(folder(tmp_path) / "checkpoints" / "previous.pt", weights_only=True)
    assert state["step"] == STEPS
