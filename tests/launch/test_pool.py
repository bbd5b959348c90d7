"""``hydra/launcher=pool``: a sweep survives failing members, being killed and being started twice."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from attnbench.base.cores import cores
from attnbench.base.errors import ConfigError
from attnbench.config.composition import compose
from attnbench.launch import executor, pool
from attnbench.launch.executor import Member
from attnbench.launch.progress import drawing
from attnbench.runs.attempt import Outcome
from tests.conftest import ROOT
from tests.small_runs import wait_for
from tests.sweeps import (
    FIFTY,
    TINY,
    Sweep,
    assert_members_save_when_their_launcher_is_killed,
    assert_survives_its_members,
    faulty,
    long,
)

POOL = ("hydra/launcher=pool", "hydra.launcher.slots=2")


def test_twelve_members_of_which_five_fail_in_five_ways(tmp_path: Path) -> None:
    assert_survives_its_members(Sweep(tmp_path, *POOL), 12, dict.fromkeys(FIFTY, 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_members_of_which_ten_fail(tmp_path: Path) -> None:
    assert_survives_its_members(Sweep(tmp_path, *POOL), 50, FIFTY)


def so_far(sweep: Sweep, process: subprocess.Popen[str], results: int) -> bool:
    """Whether a sweep has at least this number of results, or has ended."""
    return len(sweep.results()) >= results or process.poll() is not None


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("members", "results"), [(6, (0, 3)), pytest.param(50, range(0, 50, 5), marks=pytest.mark.slow)]
)
def test_a_pool_that_is_killed_loses_no_member_and_repeats_none(
    tmp_path: Path, members: int, results: Sequence[int]
) -> None:
    """The pool is killed repeatedly, each time shortly after it has a certain number of results."""
    sweep, overrides = Sweep(tmp_path, *POOL), faulty(f"range({members})")
    sweep.faults.unlink()
    moments = random.Random(0)
    seen: dict[Path, int] = {}
    for done in results:
        process = sweep.start(*overrides)
        if process.stderr:
            process.stderr.readline()  # the first member is on its way
        wait_for(functools.partial(so_far, sweep, process, done))
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert seen.items() <= sweep.results().items()
        seen = sweep.results()
    code, out, err = sweep.run(*overrides)
    assert code == 0, err
    assert " 0 failed" in out
    assert seen.items() <= sweep.results().items() and len(sweep.results()) == members


def test_a_signal_stops_the_members_so_that_each_can_be_resumed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *POOL)
    process = sweep.start(*long("0,1,2"))
    sweep.training(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert [s["status"] for s in sweep.statuses()] == ["stopped", "stopped"]
    assert len(list(tmp_path.rglob("last.pt"))) == 2
    assert ["epoch 1/40 loss" in log.read_text() for log in tmp_path.rglob("train.log")] == [True, True]


def test_a_member_that_is_asked_twice_is_stopped_and_not_failed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *POOL)
    _, _, err = sweep.run(*faulty("54"))
    assert "stopped without saving" in err and "failed" not in err
    assert [status["status"] for status in sweep.statuses()] == ["running"]  # no other process has changed it


def test_members_of_a_pool_that_is_killed_save_and_end(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *POOL)
    assert_members_save_when_their_launcher_is_killed(sweep)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("members", [2, pytest.param(49, marks=pytest.mark.slow)])
def test_processes_that_start_in_the_same_second_share_no_folder(tmp_path: Path, members: int) -> None:
    """One run is started twice: one of its two processes runs, the other finds it busy or skips it."""
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < (members + 1) * 470 * 2**20:
        pytest.skip(f"{members + 1} processes need 0.47 GiB each")
    environment = os.environ | {"ATTNBENCH_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    seeds = [*range(members), 0]
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *TINY, f"seed={seed}"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for seed in seeds
    ]  # fmt: skip
    codes = []
    for process in processes:
        process.communicate(timeout=800)
        codes.append(process.returncode)
    assert set(codes) <= {0, 7}
    assert set(codes[1:-1]) == {0} and 0 in (codes[0], codes[-1])
    folders = list((tmp_path / "outputs/runs/digits/resnet20").glob("none-none-*/seed*"))
    assert sorted(f.name for f in folders) == sorted(f"seed{seed}" for seed in range(members))
    assert all((f / "result.json").exists() for f in folders)


HOLD = """
import sys, time
from pathlib import Path
from attnbench.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.readline()
"""


class Releasing:
    """A watcher that makes another process release a run's folder after two tries of the member."""

    def __init__(self, holder: subprocess.Popen[str]) -> None:
        self.holder, self.tries = holder, 0
        self.running = False

    def update(self, members: Sequence[Member]) -> None:
        running = members[0].began is not None
        self.tries += running and not self.running
        self.running = running
        if self.tries > 1 and not running and self.holder.poll() is None:
            self.holder.communicate("\n")

    def close(self) -> None: ...


def test_a_member_that_another_process_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.PoolExecutor, "patience", 0.3)
    member = Member("one", compose([*TINY, f"paths.outputs={tmp_path}"]))
    command = [sys.executable, "-c", HOLD, str(member.folder.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    watcher = Releasing(holder)
    executor.run([member], pool.Pool(slots=1), watcher)
    assert member.outcome is not None and member.outcome.state == "done"
    assert watcher.tries > 2


def test_the_live_table_shows_what_runs_first(tmp_path: Path) -> None:
    members = [Member(f"m{i}", compose([*TINY, f"seed={i}", f"paths.outputs={tmp_path}"])) for i in range(3)]
    members[0].outcome = Outcome("done", "", {"top1": 12.345})
    members[2].began = 0.0
    members[2].folder.path.mkdir(parents=True)
    (members[2].folder.path / "metrics.jsonl").write_text('{"epoch": 1, "top1": 50.0}\n')
    table = drawing(members, now=10.0)
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["m2", "m1", "m0"]
    assert columns[1] == ["running", "waiting", "done"]
    assert columns[2][0] == "1/1"
    assert columns[3] == ["top-1 50.00", "", f"top-1 {12.345:.2f}"]
    assert table.title == "1 of 3 members ended"


def test_slots_share_the_cores_and_gpus_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [s.threads for s in pool.slots(1, [])] == [cores()]
    assert pool.slots(2, [])[0].environment == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert pool.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pool.visible_gpus() == []


@pytest.mark.parametrize(
    ("count", "gpus", "processes", "shares"),
    [
        (None, "25", 1, ["2", "5"]),
        (3, "25", 1, ["2", "5", "2"]),
        (None, "0123", 2, ["0,1", "2,3"]),
        (None, "012", 2, ["0,1"]),
        (1, "0123", 4, ["0,1,2,3"]),
        (2, "01", 2, ["0,1", "0,1"]),
    ],
)
def test_a_slot_has_a_gpu_for_each_process(count: int | None, gpus: str, processes: int, shares: list[str]) -> None:
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in pool.slots(count, gpus, processes)] == shares


def test_a_member_with_more_processes_than_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 processes .*there are 2 \(runtime\.processes\)"):
        pool.slots(None, ["0", "1"], 4)
