"""The number of CPU cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """The number of CPU cores that this process should use, at least one.

    It is the number of cores in the process's affinity mask, limited by the quotas of its control groups (containers,
    SLURM), divided by the number of processes that torchrun started on this machine. ``ATTNBENCH_CORES`` overrides it.
    """
    if named := os.environ.get("ATTNBENCH_CORES", ""):
        return max(1, int(named)) if named.isdecimal() else 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, int(min([allowed, *_quotas()])) // here)


def _quotas() -> Iterator[float]:
    """The number of cores that each control group of this process allows, for versions 1 and 2 of control groups."""
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = GROUPS / "cpu" if controllers else GROUPS
        folder = mount / path.strip("/")
        for group in (folder, *folder.parents):
            yield from _quota(group, ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",))
            if group == mount:
                break


def _quota(group: Path, files: tuple[str, ...]) -> Iterator[float]:
    try:
        numbers = [number for name in files for number in (group / name).read_text(encoding="utf-8").split()]
    except OSError:  # this group has no quota
        return
    if len(numbers) == 2 and numbers[0] not in ("max", "-1"):
        yield int(numbers[0]) / int(numbers[1])
