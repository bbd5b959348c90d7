"""Checkpoints are complete or absent, and never silently exchanged; and the state that they hold."""

from __future__ import annotations

import itertools
import logging
import os
import pydoc
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from attnbench.base import files
from attnbench.base.errors import NonFiniteError, StorageError
from attnbench.training.checkpoints import Checkpoints, Timer
from attnbench.training.engine import pace
from attnbench.training.state import TrainState, load_weights, moving_average, rng_state, set_rng_state
from tests.data_fixtures import canary
from tests.small_runs import ForkServer, folder

IDENTITY = {"schedule.lr": 0.1, "batch_size": 64}


def content(number: int, **changed: Any) -> dict[str, Any]:
    """The content of a checkpoint; its number of steps distinguishes it from others."""
    weights = {"weight": torch.full((64, 8), float(number)), "running_mean": torch.zeros(8)}
    plain = {"model": weights, "average": None, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(8)}}}}
    numbers = {"epoch": 0, "step": number, "seconds": 1.0, "best": {}}
    return {**plain, **numbers, "scaler": {}, "loss_sum": torch.tensor(1.0), "rng": [rng_state()], **changed}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", IDENTITY)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Returns the messages that attnbench has logged since the last call."""
    monkeypatch.setattr(logging.getLogger("attnbench"), "propagate", True)

    def take() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return take


def loaded(checkpoints: Checkpoints) -> int | None:
    state = checkpoints.load()
    return None if state is None else int(state["step"])


# Bad checkpoints


def damage(kind: str, path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    if kind == "truncated":
        del data[at:]
    elif kind == "flipped":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "zeroed":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
        data[0] ^= 1  # zeros may have been zeros before
    elif kind == "longer":
        data += draw.randbytes(at % 64 + 1)
    elif kind == "shuffled":
        data = data[at:] + data[:at] if at else data[::-1]
    path.write_bytes(data)


KINDS = {"truncated": 14, "flipped": 20, "zeroed": 12, "longer": 8, "shuffled": 6}
MUTATIONS = [(kind, seed) for kind, count in KINDS.items() for seed in range(count)]


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    for number in (1, 2):
        Checkpoints(folder, IDENTITY).save(content(number))
    return folder


def test_there_are_sixty_mutations() -> None:
    assert len(MUTATIONS) == 60


@pytest.mark.parametrize(("kind", "seed"), MUTATIONS)
def test_a_damaged_checkpoint_is_passed_over_with_one_warning(
    two_saves: Path, checkpoints: Checkpoints, warnings: Callable[[], list[str]], kind: str, seed: int
) -> None:
    shutil.copytree(two_saves, checkpoints.folder)
    damage(kind, checkpoints.last, random.Random(f"{kind}{seed}"))
    assert loaded(checkpoints) == 1
    (warning,) = warnings()
    assert str(checkpoints.last) in warning and str(checkpoints.previous) in warning
    damage(kind, checkpoints.previous, random.Random(f"{kind}{seed}"))
    with pytest.raises(StorageError, match="no intact checkpoint"):
        checkpoints.load()
    assert warnings() == []


def empty(c: Checkpoints) -> None:
    c.last.write_bytes(b"")


def missing(c: Checkpoints) -> None:
    c.last.unlink()


def replaced_by_best(c: Checkpoints) -> None:
    c.save_best({"weight": torch.ones(3)}, {"top1": 1.0, "epoch": 1})
    shutil.copy(c.best, c.last)


def replaced_by_a_stranger(c: Checkpoints) -> None:
    torch.save(content(9), c.last)


def replaced_by_the_previous(c: Checkpoints) -> None:
    shutil.copy(c.previous, c.last)


@pytest.mark.parametrize("change", [empty, missing, replaced_by_best, replaced_by_a_stranger, replaced_by_the_previous])
def test_a_checkpoint_that_is_not_the_last_one_is_passed_over_with_one_warning(
    two_saves: Path, checkpoints: Checkpoints, warnings: Callable[[], list[str]], change: Callable[[Checkpoints], None]
) -> None:
    shutil.copytree(two_saves, checkpoints.folder)
    change(checkpoints)
    assert loaded(checkpoints) == 1
    assert len(warnings()) == 1


def test_swapped_names_do_not_hide_which_is_the_newest(two_saves: Path, checkpoints: Checkpoints) -> None:
    shutil.copytree(two_saves, checkpoints.folder)
    checkpoints.last.rename(checkpoints.next)
    checkpoints.previous.rename(checkpoints.last)
    checkpoints.next.rename(checkpoints.previous)
    assert loaded(checkpoints) == 2
    checkpoints.save(content(3))
    assert loaded(checkpoints) == 3


@pytest.mark.parametrize("sums", [None, b"", b"\xff\xfe\x00garbage\n"])
def test_without_their_hashes_no_checkpoint_is_trusted(two_saves: Path, checkpoints: Checkpoints, sums: bytes) -> None:
    shutil.copytree(two_saves, checkpoints.folder)
    (checkpoints.folder / "SHA256SUMS").unlink()
    if sums is not None:
        (checkpoints.folder / "SHA256SUMS").write_bytes(sums)
    with pytest.raises(StorageError, match="no intact checkpoint"):
        checkpoints.load()


def test_a_run_whose_checkpoints_were_taken_away_does_not_begin_anew(two_saves: Path, checkpoints: Checkpoints) -> None:
    shutil.copytree(two_saves, checkpoints.folder)
    checkpoints.last.unlink()
    checkpoints.previous.unlink()
    with pytest.raises(StorageError, match="resume=never"):
        checkpoints.load()


def test_after_a_fallback_the_older_checkpoint_is_kept_until_a_new_one_is_whole(
    two_saves: Path, checkpoints: Checkpoints
) -> None:
    shutil.copytree(two_saves, checkpoints.folder)
    damage("flipped", checkpoints.last, random.Random(0))
    checkpoints.save(content(3))
    assert loaded(checkpoints) == 3
    damage("flipped", checkpoints.last, random.Random(0))
    assert loaded(checkpoints) == 1


def test_a_new_run_has_no_checkpoint(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None
    checkpoints.save_best({"weight": torch.ones(3)}, {"top1": 1.0, "epoch": 1})
    assert checkpoints.load() is None


def test_the_list_of_hashes_is_that_of_sha256sum(checkpoints: Checkpoints) -> None:
    for number in (1, 2, 3):
        checkpoints.save(content(number))
    checkpoints.save_best({"weight": torch.ones(3)}, {"top1": 1.0, "epoch": 1})
    lines = (checkpoints.folder / "SHA256SUMS").read_text().splitlines()
    kept = (checkpoints.best, checkpoints.last, checkpoints.previous)
    assert lines == [f"{files.sha256(path)}  {path.name}" for path in kept]
    assert {path.name for path in checkpoints.folder.iterdir()} == {"SHA256SUMS", "best.pt", "last.pt", "previous.pt"}


def test_a_pickle_that_calls_something_is_refused_and_not_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.folder.mkdir()
    checkpoints.last.write_bytes(canary(os.mkdir, tmp_path / "canary"))
    (checkpoints.folder / "SHA256SUMS").write_text(f"{files.sha256(checkpoints.last)}  last.pt\n")
    with pytest.raises(StorageError, match="not a checkpoint"):
        checkpoints.load()
    assert not (tmp_path / "canary").exists()


# Kills between any two operations


class Killed(BaseException):
    """A kill: nothing catches it, and after it no file changes."""


def killed_at(operation: int, act: Callable[[], object]) -> bool:
    """Act, but die before the given file operation or write, counted from 0. Return whether there were so many."""
    count = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > operation:
                raise Killed
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", dying(lambda descriptor: None))  # slow, and not needed to survive a kill
        for name in ("os.replace", "os.unlink", "builtins.open", "attnbench.base.files._Hashing.write"):
            patch.setattr(name, dying(pydoc.locate(name)))  # type: ignore[arg-type]
        try:
            act()
        except Killed:
            return True
    return False


def operations(act: Callable[[], object]) -> Iterator[int]:
    """The number of every operation before which a kill can come, and one more, for a kill after the last."""
    for operation in itertools.count():
        alive = not killed_at(operation, act)
        yield operation
        if alive:
            return


def assert_tidy(checkpoints: Checkpoints) -> None:
    assert {p.name for p in checkpoints.folder.iterdir()} <= {"SHA256SUMS", "last.pt", "previous.pt"}


def test_a_kill_at_any_operation_of_the_first_save_leaves_nothing_or_a_whole_checkpoint(
    checkpoints: Checkpoints,
) -> None:
    seen = []
    for _ in operations(lambda: checkpoints.save(content(1))):
        seen.append(loaded(checkpoints))
        checkpoints.save(content(2))
        assert loaded(checkpoints) == 2
        assert_tidy(checkpoints)
        shutil.rmtree(checkpoints.folder)
    assert set(seen) == {None, 1} and len(seen) > 20


def test_two_kills_at_any_operations_leave_a_whole_checkpoint_and_an_older_one_to_fall_back_on(
    checkpoints: Checkpoints, two_saves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second kill finds what the first one left, for every pair of moments that leave different files."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # slow, and not needed to survive a kill

    def after(folder: Path, moment: int, number: int) -> Path:
        """Copy a folder, and kill the saving of another checkpoint in the copy."""
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
        shutil.copytree(folder, checkpoints.folder)
        killed_at(moment, lambda: checkpoints.save(content(number)))
        return checkpoints.folder

    after(two_saves, 0, 3)
    every = list(operations(lambda: checkpoints.save(content(3))))
    moments = [every[1], every[30], *every[-19:]]  # the operations in between all write to one file
    for first in moments:
        once = Path(shutil.copytree(after(two_saves, first, 3), tmp_path / f"once{first}"))
        reached = loaded(checkpoints)
        assert reached in (2, 3)
        for second in moments:
            after(once, second, 4)
            assert loaded(checkpoints) in (reached, 4), (first, second)
            newest = loaded(checkpoints)
            checkpoints.save(content(5))
            assert loaded(checkpoints) == 5
            assert_tidy(checkpoints)
            damage("flipped", checkpoints.last, random.Random(0))
            assert loaded(checkpoints) == newest, (first, second)


# Non-finite tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("item", ["model", "average", "optimizer", "loss_sum"])
def test_no_checkpoint_holds_a_number_that_is_not_finite(checkpoints: Checkpoints, item: str, value: float) -> None:
    checkpoints.save(content(1))
    bad = torch.ones(8)
    bad[3] = value
    with pytest.raises(NonFiniteError, match=rf"{item}.*epoch 1, step 2"):
        checkpoints.save(content(2, **{item: {"weight": bad} if item != "loss_sum" else bad}))
    assert loaded(checkpoints) == 1


def test_the_best_weights_are_finite_too(checkpoints: Checkpoints) -> None:
    with pytest.raises(NonFiniteError, match="epoch 3"):
        checkpoints.save_best({"weight": torch.tensor(float("nan"))}, {"top1": 1.0, "epoch": 3})
    assert not checkpoints.best.exists()


def test_a_rate_that_is_too_high_exits_4_and_leaves_only_finite_checkpoints(forks: ForkServer, tmp_path: Path) -> None:
    end = forks.run(tmp_path, "schedule.lr=1e20", "schedule.warmup_epochs=0.0", "runtime.checkpoint_steps=1")
    assert end.code == 4, end.stderr
    assert len(end.errors) == 1 and "(epoch 1, step " in end.errors[0]
    assert "Traceback" not in end.stderr
    for path in folder(tmp_path).rglob("*.pt"):
        tensors = tree_flatten(torch.load(path, weights_only=True))[0]
        assert all(t.isfinite().all() for t in tensors if isinstance(t, Tensor) and t.is_floating_point())
    assert forks.run(tmp_path, "schedule.lr=1e20", "schedule.warmup_epochs=0.0").code == 4


# The state


class Annealed(nn.Linear):
    progress = 0.0

    def set_progress(self, progress: float) -> None:
        self.progress = progress


def trained_state(decay: float | None = 0.5, steps: int = 3) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(Annealed(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, optimizer, scaler, moving_average(model, decay), torch.zeros(()))
    for _ in range(steps):
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if state.average is not None:
            state.average.update_parameters(model)
        state.step += 1
    return state


def test_a_state_survives_its_checkpoint(checkpoints: Checkpoints) -> None:
    state = trained_state()
    state.loss_sum += 2.5
    state.seconds, state.best = 12.5, {"top1": 50.0, "epoch": 1}
    checkpoints.save(state.state_dict([rng_state()]))
    saved = checkpoints.load()
    assert saved is not None
    fresh = trained_state(steps=0)
    load_weights(fresh.model, saved["model"])
    fresh.load_state_dict(saved)
    assert fresh.digest() == state.digest()
    for name in ("epoch", "step", "seconds", "best", "loss_sum"):
        assert getattr(fresh, name) == getattr(state, name)


def part(model: nn.Module, number: int) -> Any:
    """The n-th module of a sequence."""
    assert isinstance(model, nn.Sequential)
    return model[number]


def test_the_digest_sees_weights_statistics_average_and_momentum() -> None:
    def digest(change: Callable[[TrainState], object]) -> str:
        state = trained_state()
        with torch.no_grad():
            change(state)
        return state.digest()

    changes: list[Callable[[TrainState], object]] = [
        lambda state: None,
        lambda state: part(state.model, 3).bias.add_(1e-6),
        lambda state: part(state.model, 1).running_var.add_(1e-6),
        lambda state: part(state.model, 1).num_batches_tracked.add_(1),
        lambda state: next(iter(state.optimizer.state.values()))["momentum_buffer"].mul_(1.01),
        lambda state: next(state.evaluated.parameters()).mul_(1.01),
    ]
    assert digest(changes[0]) == digest(changes[0])
    assert len({digest(change) for change in changes}) == len(changes)


def test_the_average_is_that_of_a_hand_loop_and_its_statistics_are_the_models() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).double()
    average, by_hand = moving_average(model, 0.9), None
    assert average is not None
    for _ in range(20):
        with torch.no_grad():
            model(torch.randn(16, 4).double())
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(model)
        now = [p.detach().clone() for p in model.parameters()]
        by_hand = now if by_hand is None else [0.9 * a + 0.1 * b for a, b in zip(by_hand, now, strict=True)]
        for ours, theirs in zip(average.module.parameters(), by_hand, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    for averaged, own in zip(average.module.buffers(), model.buffers(), strict=True):
        assert torch.equal(averaged, own)


def test_what_anneals_does_so_in_the_average_too() -> None:
    state = trained_state()
    pace(state, 1.25, 0.025)
    assert part(state.model, 0).progress == part(state.evaluated, 0).progress == 1.25
    assert state.evaluated is not state.model
    assert state.lr == 0.025


def test_without_an_average_the_model_is_evaluated() -> None:
    state = trained_state(decay=None)
    assert state.evaluated is state.model
    assert state.state_dict([])["average"] is None


def test_the_random_state_is_restored() -> None:
    saved = rng_state()
    first = (torch.rand(3).tolist(), random.random())
    set_rng_state(saved)
    assert (torch.rand(3).tolist(), random.random()) == first


@pytest.mark.parametrize(("step", "mean"), [(0, 0.0), (1, 6.0), (3, 2.0)])
def test_the_mean_loss_is_over_the_steps_that_were_done(step: int, mean: float) -> None:
    state = trained_state()
    state.loss_sum += 6.0 if step else 0.0
    state.step = step
    assert state.mean_loss() == mean


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_step(loss: float) -> None:
    state = trained_state()
    state.loss_sum += loss
    with pytest.raises(NonFiniteError, match="epoch 1, step 3"):
        state.mean_loss()


def test_a_checkpoint_is_due_by_steps_or_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("attnbench.training.checkpoints.time.monotonic", lambda: now)
    timer = Timer(steps=5, minutes=1.0)
    assert [step for step in range(1, 12) if timer.due(step)] == [5, 10]
    now = 61.0
    assert timer.due(1)
    timer.restart()
    assert not timer.due(1)
    assert not Timer(steps=None, minutes=1.0).due(5)
