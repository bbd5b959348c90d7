"""The number of cores that a run uses never exceeds its limits."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from attnbench.base import cores as module
from attnbench.base.cores import cores
from attnbench.training.runtime import Runtime


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight cores and no control groups; returns the folder for them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(module, "OWN", tmp_path / "own")
    monkeypatch.setattr(module, "GROUPS", tmp_path / "cgroup")
    for name in ("ATTNBENCH_CORES", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def group(machine: Path, path: str, **files: str) -> None:
    folder = machine / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_all_cores_of_the_affinity_mask_are_used(machine: Path) -> None:
    assert cores() == 8


@pytest.mark.parametrize(
    ("quota", "above", "expected"),
    [("max 100000", "max 100000", 8), ("350000 100000", "max 100000", 3), ("max 100000", "250000 100000", 2),
     ("50000 100000", "max 100000", 1), ("9900000 100000", "max 100000", 8)],
)  # fmt: skip
def test_no_more_than_a_container_allows(machine: Path, quota: str, above: str, expected: int) -> None:
    (machine / "own").write_text("0::/job/step\n")
    group(machine, "job", cpu_max=above)
    group(machine, "job/step", cpu_max=quota)
    assert cores() == expected


def test_no_more_than_the_first_version_of_groups_allows(machine: Path) -> None:
    (machine / "own").write_text("3:cpuset:/\n1:cpu,cpuacct:/job\n0::/\n")
    group(machine, "cpu", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    group(machine, "cpu/job", cpu_cfs_quota_us="400000", cpu_cfs_period_us="100000")
    assert cores() == 4


def test_processes_of_one_machine_share_them(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
    assert cores() == 1
    monkeypatch.setenv("ATTNBENCH_CORES", "5")
    assert cores() == 5


def test_workers_never_exceed_the_cores(machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[int | str, int] = {"auto": 8, 0: 0, 3: 3, 8: 8, 9: 8}
    with caplog.at_level(logging.INFO, "attnbench"):
        for workers, expected in asked.items():
            with Runtime(device="cpu", workers=workers).start() as process:  # type: ignore[arg-type]
                assert process.workers == expected
    assert caplog.messages == ["runtime.workers=9: using 8, one for each core"]
