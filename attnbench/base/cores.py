"""How many CPU cores there are for us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """The CPU cores that this process should use; at least one.

    Those of its affinity, no more than the quotas of its control groups (containers, SLURM) allow, shared evenly with
    the processes that torchrun started here. ``ATTNBENCH_CORES`` overrides all of it.
    """
    if named := os.environ.get("ATTNBENCH_CORES", ""):
        return max(1, int(named)) if named.isdecimal() else 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, int(min([allowed, *_quotas()])) // here)


def _quotas() -> Iterator[float]:
    """Cores that each control group around this process has time for; of version 2, and of version 1."""
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
        words = [word for name in files for word in (group / name).read_text(encoding="utf-8").split()]
    except OSError:  # no such control here
        return
    if len(words) == 2 and words[0] not in ("max", "-1"):
        yield int(words[0]) / int(words[1])
