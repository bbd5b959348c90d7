"""Sweeps on a fake launcher: when members are tried, and how a sweep ends."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from attnbench.base.errors import BusyError, Failure
from attnbench.config.composition import compose
from attnbench.launch import executor, pool, ray_cluster, submitit_local, submitit_slurm
from attnbench.launch.executor import Member
from attnbench.launch.process import POLL_SECONDS
from attnbench.runs.attempt import Outcome

PATIENCE = 60.0


class Paper:
    """A fake launcher, executor and watcher, whose attempts end at once.

    Args:
        busy: how many attempts at the first member find its folder held by another process.
        lost: whether such an attempt ends without an outcome instead, as when a launcher's own process is lost.

    Attributes:
        tries: the member of each attempt, and when it began.
    """

    patience = PATIENCE

    def __init__(self, busy: int, lost: bool = False) -> None:
        self.busy, self.lost = busy, lost
        self.tries: list[tuple[str, float]] = []
        self.here: list[Member] = []

    def refuse(self) -> None: ...

    def executor(self, members: Sequence[Member]) -> Paper:
        return self

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        for member in ready:
            member.began = time.monotonic()
            self.tries.append((member.name, member.began))
        self.here += ready
        return list(ready)

    def ended(self) -> Sequence[Member]:
        over, self.here = self.here, []
        for member in over:
            held = member.name == "first" and self.times("first") <= self.busy
            if not held:
                member.outcome = Outcome("done", result={"top1": 50.0})
            elif not self.lost:
                member.outcome = Outcome("failed", failure=BusyError("another process holds this run"))
        return over

    def times(self, name: str) -> int:
        return sum(tried == name for tried, _ in self.tries)

    def stop(self) -> None: ...
    def update(self, members: Sequence[Member]) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances only by calls of sleep."""
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)


def members(outputs: Path) -> list[Member]:
    seeds = enumerate(("first", "second"))
    return [Member(name, compose([f"seed={seed}", f"paths.outputs={outputs}"])) for seed, name in seeds]


@pytest.mark.parametrize("lost", [False, True])
def test_a_member_that_is_busy_is_tried_again_after_a_while_and_holds_up_no_other(
    clock: None, tmp_path: Path, lost: bool
) -> None:
    both, paper = members(tmp_path), Paper(busy=3, lost=lost)
    executor.run(both, paper, paper)
    assert [member.outcome and member.outcome.state for member in both] == ["done", "done"]
    assert [name for name, _ in paper.tries] == ["first", "second", "first", "first", "first"]
    first = [at for name, at in paper.tries if name == "first"]
    waits = [after - before for before, after in itertools.pairwise(first)]
    assert all(PATIENCE <= wait <= PATIENCE + 3 * POLL_SECONDS for wait in waits), waits


def test_a_member_that_fails_is_not_tried_again(clock: None, tmp_path: Path) -> None:
    class Failing(Paper):
        def ended(self) -> Sequence[Member]:
            over = list(super().ended())
            for member in over:
                if member.name == "first":
                    member.outcome = Outcome("failed", failure=Failure("no"))
            return over

    both, paper = members(tmp_path), Failing(busy=0)
    executor.run(both, paper, paper)
    assert [member.outcome and member.outcome.state for member in both] == ["failed", "done"]
    assert [name for name, _ in paper.tries] == ["first", "second"]


@pytest.mark.parametrize(
    "kind",
    [pool.PoolExecutor, ray_cluster.RayExecutor, submitit_local.LocalExecutor, submitit_slurm.SlurmExecutor],
)
def test_a_busy_member_does_not_keep_a_core_busy_with_tries(kind: type) -> None:
    """Each try starts a process, whose imports take a second."""
    assert 1.0 <= kind.patience <= 600.0  # type: ignore[attr-defined]
