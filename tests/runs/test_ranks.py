"""``runtime.processes``: a run, or a member of a sweep, starts several processes and trains in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.base.errors import ConfigError
from attnbench.config.configuration import Config
from attnbench.training.runtime import Runtime
from tests.sweeps import Sweep, faulty

TWO = ("runtime.processes=2", "runtime.device=cpu")


POOL = ("hydra/launcher=pool", "hydra.launcher.slots=1")


@pytest.mark.slow
def test_a_member_of_two_processes_in_a_pool(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *POOL)
    code, _, err = sweep.run(*faulty("2"), *TWO)
    assert code == 0, err
    (result,) = sweep.finished()
    assert result["world_size"] == 2


@pytest.mark.slow
def test_processes_end_with_the_one_that_is_killed_which_is_named(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *POOL)
    code, out, err = sweep.run(*faulty("2,5"), *TWO)
    assert code == 1, err
    assert "1 done, 0 skipped, 1 failed" in out
    (reason,) = sweep.reasons()
    assert reason in ("process 0 of 2 killed by signal 9", "process 1 of 2 killed by signal 9")
    sweep.let_go()


def test_processes_do_not_name_another_run(compose: Callable[..., Config]) -> None:
    assert compose(*TWO).run_folder == compose().run_folder


def test_processes_of_torchrun_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Runtime(processes=3).missing == 3
    assert Runtime(processes=1).missing == Runtime().missing == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Runtime(processes=3).missing == 0


@pytest.mark.parametrize(
    ("gpus", "device", "where"), [(1, "auto", "runtime.processes"), (4, "cuda:1", "runtime.device"), (0, "auto", "")]
)
def test_each_process_needs_a_gpu_unless_there_is_none(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, where: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    runtime = Runtime(processes=2, device=device)
    if not where:
        runtime.check()
        return
    with pytest.raises(ConfigError) as refused:
        runtime.check()
    assert refused.value.where == where
