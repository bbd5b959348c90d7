"""``hydra/launcher=pool``: a sweep survives its members, its own death and being started twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from attnbench import pool
from attnbench.config import compose
from attnbench.pool import Member, Pool
from attnbench.watch import drawing
from tests.conftest import ROOT

TINY = ("schedule.epochs=1", "batch_size=512", "dataset.size=8", "dataset.pad=0", "backbone=resnet20")


class Sweep:
    """A sweep over the members of tests/faulty, in a folder of its own."""

    def __init__(self, folder: Path, members: int) -> None:
        self.folder, self.members = folder, members
        self.faults = folder / "faults"
        self.faults.touch()
        self.environment = os.environ | {
            "ATTNBENCH_TRUST": "tests", "PYTHONPATH": str(ROOT), "FAULTS": str(self.faults),
            "ATTNBENCH_OUTPUTS": str(folder / "outputs"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self) -> subprocess.Popen[str]:
        words = ["-m", "hydra/launcher=pool", "hydra.launcher.slots=2", "--config-dir", str(ROOT / "tests/faulty")]
        words += ["attention=faulty", f"attention.member=range({self.members})", *TINY]
        command = [sys.executable, str(ROOT / "train.py"), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def run(self) -> tuple[int, str, str]:
        process = self.start()
        out, err = process.communicate(timeout=280)
        return process.returncode, out, err

    def results(self) -> dict[Path, int]:
        """Each finished member's result, and when it was written."""
        found = (self.folder / "outputs").rglob("result.json")
        return {path: path.stat().st_mtime_ns for path in found}

    def statuses(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in (self.folder / "outputs").rglob("status.json")]


def test_fifty_members_of_which_ten_fail(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, 50)
    code, out, err = sweep.run()
    assert code == 1, err
    assert "40 done, 0 skipped, 10 failed" in out
    failed = [s for s in sweep.statuses() if s["status"] == "failed"]
    reasons = Counter(str(s["error"]).split(" (")[0].split(":")[0] for s in failed)
    assert reasons == {
        "unexpected ZeroDivisionError": 3, "killed by SIGKILL": 3, "ended with exit code 3": 2,
        "the loss became nan": 1, "out of memory": 1,
    }  # fmt: skip
    before = sweep.results()
    assert len(before) == 40

    sweep.faults.unlink()
    code, out, err = sweep.run()
    assert code == 0, err
    assert "10 done, 40 skipped, 0 failed" in out
    assert err.count("started: ") == 10
    after = sweep.results()
    assert len(after) == 50 and before.items() <= after.items()

    began = time.monotonic()
    code, out, err = sweep.run()
    assert (code, err.count("started: ")) == (0, 0)
    assert "0 done, 50 skipped, 0 failed" in out
    assert sweep.results() == after
    assert time.monotonic() - began < 30  # 10 on a machine that does nothing else


def test_a_pool_that_is_killed_loses_no_member_and_repeats_none(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, 8)
    sweep.faults.unlink()
    moments = random.Random(0)
    seen: dict[Path, int] = {}
    for _ in range(4):
        process = sweep.start()
        process.stderr and process.stderr.readline()  # type: ignore[union-attr]  # the first member is on its way
        time.sleep(moments.uniform(0, 4))
        process.kill()
        process.communicate()
        assert seen.items() <= sweep.results().items()
        seen = sweep.results()
    code, out, err = sweep.run()
    assert code == 0, err
    assert " 0 failed" in out
    assert seen.items() <= sweep.results().items() and len(sweep.results()) == 8


def test_a_signal_stops_the_members_so_that_each_can_be_resumed(tmp_path: Path) -> None:
    words = ["-m", "hydra/launcher=pool", "seed=0,1,2", "schedule.epochs=40", "dataset.size=8", "dataset.pad=0"]
    environment = os.environ | {"ATTNBENCH_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("status.json")]
    assert statuses == ["stopped", "stopped"]
    assert len(list(tmp_path.rglob("last.pt"))) == 2


def test_processes_that_start_in_the_same_second_share_no_folder(tmp_path: Path) -> None:
    """Three members at once, one of them twice: of the twins one runs and the other is busy or skips."""
    environment = os.environ | {"ATTNBENCH_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    seeds = [0, 1, 2, 0]
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *TINY, f"seed={seed}"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for seed in seeds
    ]  # fmt: skip
    codes = []
    for process in processes:
        process.communicate(timeout=280)
        codes.append(process.returncode)
    assert set(codes) <= {0, 7}
    assert codes[1:3] == [0, 0] and 0 in (codes[0], codes[3])
    folders = list((tmp_path / "outputs/runs/digits/resnet20").glob("none-none-*/seed*"))
    assert sorted(f.name for f in folders) == [f"seed{seed}" for seed in range(3)]
    assert all((f / "result.json").exists() for f in folders)


HOLD = """
import sys, time
from pathlib import Path
from attnbench.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.readline()
"""


class Release:
    """A watcher that has a held folder let go after the second try."""

    def __init__(self, holder: subprocess.Popen[str], tries: list[pool.Outcome]) -> None:
        self.holder, self.tries = holder, tries

    def update(self, members: object, slots: object) -> None:
        if len(self.tries) > 1 and self.holder.poll() is None:
            self.holder.communicate("\n")

    def close(self) -> None: ...


def test_a_member_that_another_process_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BUSY_SECONDS", 0.3)
    member = Member("one", compose([*TINY, f"paths.outputs={tmp_path}"]))
    command = [sys.executable, "-c", HOLD, str(member.folder.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    tries: list[pool.Outcome] = []
    original = pool.ended
    monkeypatch.setattr(pool, "ended", lambda *a: tries.append(original(*a)) or tries[-1])  # type: ignore[func-returns-value]
    Pool(pool.slots(1), Release(holder, tries)).run([member])
    assert member.outcome is not None and member.outcome.state == "done"
    assert [t.state for t in tries] == ["failed"] * (len(tries) - 1) + ["done"] and len(tries) > 2


def test_the_live_table_shows_what_runs_first(tmp_path: Path) -> None:
    members = [Member(f"m{i}", compose([*TINY, f"seed={i}", f"paths.outputs={tmp_path}"])) for i in range(3)]
    members[0].outcome = pool.Outcome("done", "", {"top1": 12.345})
    slot = pool.Slot({}, 1, member=members[2], since=0.0)
    members[2].folder.path.mkdir(parents=True)
    (members[2].folder.path / "metrics.jsonl").write_text('{"epoch": 1, "top1": 50.0}\n')
    table = drawing(members, [slot], now=10.0)
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["m2", "m1", "m0"]
    assert columns[1] == ["running", "waiting", "done"]
    assert columns[2][0] == "1/1"
    assert columns[3] == ["50.00", "", f"{12.345:.2f}"]
    assert table.title == "1 of 3 members ended"


def test_slots_share_the_cores_and_gpus_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = len(os.sched_getaffinity(0))
    assert [s.threads for s in pool.slots(1)] == [cores]
    assert pool.slots(2)[0].environment == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in pool.slots()] == ["2", "5"]
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in pool.slots(3)] == ["2", "5", "2"]
