"""Sweeps over members that fail in known ways, started as a user starts them; see faulty_attention.py."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from attnbench.base.errors import BusyError
from attnbench.runs.folder import RunFolder
from tests.conftest import ROOT
from tests.small_runs import wait_for

TINY = (
    *("schedule.epochs=1", "batch_size=512", "dataset.size=4", "dataset.pad=0"),
    *("backbone=resnet20", "backbone.depth=8"),
)


class Sweep:
    """A sweep by one launcher, in a folder of its own.

    Args:
        folder: where it is started and writes to.
        launcher: the words that choose it, with its options.
    """

    def __init__(self, folder: Path, *launcher: str) -> None:
        self.folder, self.launcher = folder, launcher
        self.faults = folder / "faults"
        self.faults.touch()
        self.environment = os.environ | {
            "ATTNBENCH_TRUST": "tests", "PYTHONPATH": str(ROOT), "ATTNBENCH_FAULTS": str(self.faults),
            "ATTNBENCH_OUTPUTS": "outputs", "OMP_NUM_THREADS": "1", "COLUMNS": "200",
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "train.py"), "-m", *self.launcher, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=560)
        return process.returncode, out, err

    def results(self) -> dict[Path, int]:
        """Each finished member's result, and when it was written."""
        found = (self.folder / "outputs").rglob("result.json")
        return {path: path.stat().st_mtime_ns for path in found}

    def statuses(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in (self.folder / "outputs").rglob("status.json")]

    def resumed(self) -> list[int]:
        """How often each member was resumed, in order."""
        return sorted(log.read_text().count("resumed from step") for log in self.folder.rglob("train.log"))

    def finished(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.results()]

    def reasons(self) -> Counter[str]:
        """Why members failed, without what differs from one to the other."""
        failed = [s for s in self.statuses() if s["status"] == "failed"]
        return Counter(str(s["error"]).split(" (")[0].split(":")[0] for s in failed)

    def training(self, members: int) -> None:
        """Wait until so many have finished an epoch."""
        lines = (self.folder / "outputs").rglob
        wait_for(lambda: sum(path.stat().st_size > 0 for path in lines("metrics.jsonl")) >= members)

    def let_go(self) -> None:
        """Wait until no process holds a member's folder."""
        folders = [path.parent for path in (self.folder / "outputs").rglob(".lock")]
        wait_for(lambda: not any(held(folder) for folder in folders), seconds=60)


def faulty(members: str) -> list[str]:
    """The words of a sweep over members by their numbers, such as ``range(50)``."""
    return ["--config-dir", str(ROOT / "tests/faulty"), "attention=faulty", f"attention.member={members}", *TINY]


def long(seeds: str, epochs: int = 40) -> list[str]:
    """The words of a sweep over runs that last for some seconds."""
    return [f"seed={seeds}", f"schedule.epochs={epochs}", "dataset.size=8", "dataset.pad=0"]


def held(folder: Path) -> bool:
    try:
        RunFolder(folder).refuse_busy()
    except BusyError:
        return True
    return False


def above(pid: int, generations: int) -> int:
    """A process's parent's parent's ... number."""
    for _ in range(generations):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def cpu_seconds() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def assert_survives_its_members(sweep: Sweep, members: int, failing: dict[str, int]) -> None:
    """First run: all but the failing ones; second: just those; third: none, and nothing is written again."""
    words = faulty(f"range({members})")
    failures = sum(failing.values())
    code, out, err = sweep.run(*words)
    assert code == 1, err
    assert f"{members - failures} done, 0 skipped, {failures} failed" in out, out
    assert sweep.reasons() == failing
    before = sweep.results()
    assert len(before) == members - failures

    sweep.faults.unlink()
    code, out, err = sweep.run(*words)
    assert code == 0, err
    assert f"{failures} done, {members - failures} skipped, 0 failed" in out, out
    assert err.count("started: ") == failures
    after = sweep.results()
    assert len(after) == members and before.items() <= after.items()

    before_third = cpu_seconds()
    code, out, err = sweep.run(*words)
    assert (code, err.count("started: ")) == (0, 0)
    assert f"0 done, {members} skipped, 0 failed" in out
    assert sweep.results() == after
    assert cpu_seconds() - before_third < 20


def assert_members_save_when_their_launcher_is_killed(sweep: Sweep) -> None:
    process = sweep.start(*long("0,1"))
    sweep.training(2)
    process.kill()
    process.communicate()
    sweep.let_go()
    assert [s["status"] for s in sweep.statuses()] == ["stopped", "stopped"]


FIFTY = {
    "unexpected ZeroDivisionError": 3, "killed by SIGKILL": 3, "ended with exit code 3": 2,
    "the loss became nan": 1, "out of memory": 1,
}  # fmt: skip
