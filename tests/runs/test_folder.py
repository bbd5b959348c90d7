"""Only one process at a time holds a run's folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from attnbench.base.errors import BusyError, StorageError
from attnbench.runs.folder import RunFolder
from tests.small_runs import ForkServer, ended, folder, result, running, start


def held_elsewhere(path: Path, *, with_worker: bool = False) -> tuple[int, int]:
    """Start a process that holds a folder, and a data worker that outlives it; return their ids."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with RunFolder(path).hold():
            worker = os.fork() if with_worker else 0
            if with_worker and worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(writer, str(worker).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    return pid, worker


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_held_folder_is_refused_and_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    pid, _ = held_elsewhere(tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(BusyError, match=f"another process holds this run: .* {pid}"):
        run.refuse_busy()
    with pytest.raises(BusyError) as refused, run.hold():
        pass
    assert refused.value.code == 7
    killed(pid)
    run.refuse_busy()
    with run.hold():
        assert (tmp_path / "run" / ".lock").read_text().split()[-1] == str(os.getpid())


def test_a_data_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    pid, worker = held_elsewhere(tmp_path / "run", with_worker=True)
    killed(pid)
    try:
        os.kill(worker, 0)  # the worker is alive
        with RunFolder(tmp_path / "run").hold():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_only_the_main_process_of_a_run_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun, the other processes would find the folder held by their own main process."""
    pid, _ = held_elsewhere(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    RunFolder(tmp_path / "run").refuse_busy()
    killed(pid)


def test_asking_about_a_folder_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").refuse_busy()
    assert RunFolder(tmp_path / "run").result() is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    run = RunFolder(tmp_path / "runs" / "seed0")
    with pytest.raises(StorageError, match=r"Not a directory.*runs/seed0"), run.hold():
        pass


def test_only_a_whole_result_that_says_done_is_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for text in ("", '{"status": "do', '{"status": "failed"}', "[]", "null"):
        (tmp_path / "result.json").write_text(text)
        assert run.result() is None
    run.write("result.json", {"status": "done", "top1": 1.0})
    assert run.result() == {"status": "done", "top1": 1.0}


def test_clearing_removes_what_a_start_left(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    names = ["result.json", "metrics.jsonl", "gauges.jsonl", "train.log", "status.json", "checkpoints/last.pt", "tb/x"]
    names += ["predictions.csv", "report/x", "predictions/x"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    run.clear()
    run.clear()
    assert list(tmp_path.iterdir()) == []


def contents(outputs: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in outputs.rglob("*")}


def test_a_second_start_of_a_run_exits_7_within_seconds_and_writes_nothing(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path
) -> None:
    with running(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)  # so that any change comes from the second one
        before = contents(tmp_path)
        began = time.monotonic()
        refused = [ended(start(tmp_path))]
        assert time.monotonic() - began < 5
        refused.append(forks.run(tmp_path, "resume=never"))
        for second in refused:
            assert second.code == 7, second.stderr
            assert second.errors and f" {first.pid} " in second.errors[0].replace(" (", " (")
            assert len(second.stderr.splitlines()) == 1
        assert contents(tmp_path) == before
        first.kill()
        first.wait()
    assert forks.run(tmp_path).code == 0  # takes over the lock of the killed run
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]
    assert result(tmp_path)["resumed_from_step"] > 0
    assert folder(tmp_path).joinpath(".lock").exists()
