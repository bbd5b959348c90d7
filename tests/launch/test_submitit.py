"""``hydra/launcher=submitit_local`` on this machine, and ``submitit_slurm`` with fake SLURM commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbench.base.errors import ConfigError, Stopped
from attnbench.config.composition import compose
from attnbench.launch import hydra_launchers
from attnbench.launch.executor import Member
from attnbench.launch.submitit_job import ranked
from tests.conftest import ROOT
from tests.small_runs import wait_for
from tests.sweeps import TINY, Sweep, above, faulty

pytest.importorskip("submitit", reason="the launcher's extra, attnbench[slurm], is not installed")

LOCAL = ("hydra/launcher=submitit_local",)


def _running(sweep: Sweep) -> list[dict[str, Any]]:
    return [status for status in sweep.statuses() if status["status"] == "running"]


def test_jobs_fail_alone_and_one_whose_time_is_up_is_requeued_and_resumed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *LOCAL)
    process = sweep.start(*faulty("2,5"), "schedule.epochs=60")
    sweep.training(1)
    wait_for(lambda: len(_running(sweep)) == 1)  # noticing that the other member was killed may take a moment
    (status,) = _running(sweep)
    for generation in (2, 1, 0):  # submitit's process, fork server, member: SLURM signals them all
        os.kill(above(status["pid"], generation), signal.SIGUSR2)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 1, err
    assert "1 done, 0 skipped, 1 failed" in out
    assert sweep.reasons() == {"killed by SIGKILL": 1}
    assert sweep.resumed() == [0, 1]
    assert sweep.finished()[0]["resumed_from_step"] > 0


def test_the_tasks_of_a_job_are_the_processes_of_a_run_and_a_signal_stops_them(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *LOCAL, "hydra.launcher.tasks_per_node=2", "runtime.device=cpu")
    process = sweep.start(*TINY, "seed=0", "schedule.epochs=1000")
    sweep.training(1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert [s["status"] for s in sweep.statuses()] == ["stopped"]
    (saved,) = tmp_path.rglob("last.pt")
    assert len(torch.load(saved, weights_only=True)["rng"]) == 2  # one state for each process


SBATCH = """#!/bin/sh
cp "$1" "$HERE/script"
echo "Submitted batch job 17"
"""
SQUEUE = """#!/bin/sh
cat "$HERE/states"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$HERE/requests"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fake SLURM commands, which accept jobs and never run them; it records the submitted script."""
    here = tmp_path / "slurm"
    here.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n"), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        (here / name).write_text(text)
        (here / name).chmod(0o755)
    (here / "states").touch()
    monkeypatch.setenv("HERE", str(here))
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    return here


def members(outputs: Path, *overrides: str) -> list[Member]:
    return [
        Member(f"seed {i}", compose([*TINY, f"seed={i}", f"paths.outputs={outputs}", *overrides])) for i in range(3)
    ]


def slurm_launcher(outputs: Path, *overrides: str) -> object:
    return hydra_launchers.chosen(["hydra/launcher=submitit_slurm", f"paths.outputs={outputs}", *overrides])


OPTIONS = ["partition=gpu", "account=vision", "timeout_min=90", "gpus_per_node=2", "cpus_per_task=8", "mem_gb=64"]
OPTIONS += ["array_parallelism=2", "constraint=h200", "additional_parameters={mail-type: END}", "setup=[module load x]"]


def test_the_plugins_options_become_a_job_array(slurm: Path, tmp_path: Path) -> None:
    some = members(tmp_path)
    executor = slurm_launcher(tmp_path, *(f"hydra.launcher.{option}" for option in OPTIONS)).executor(some)  # type: ignore[attr-defined]
    assert executor.start(some) == some
    lines = (slurm / "script").read_text().splitlines()
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert options >= {
        "array=0-2%2", "partition=gpu", "account=vision", "time=90", "gpus-per-node=2", "cpus-per-task=8",
        "mem=64GB", "constraint=h200", "mail-type=END", "requeue", "signal=USR2@120", "job-name=attnbench",
    }  # fmt: skip
    assert "module load x" in lines
    assert [member.processes for member in some] == [2, 2, 2]
    assert compose([*TINY, "seed=0", f"paths.outputs={tmp_path}"]).run_folder == some[0].folder.path


def test_jobs_of_an_earlier_start_are_found_again_and_left_where_they_are(slurm: Path, tmp_path: Path) -> None:
    first = slurm_launcher(tmp_path).executor(some := members(tmp_path))  # type: ignore[attr-defined]
    first.start(some)
    (slurm / "states").write_text("17_0 RUNNING\n17_1 PENDING\n17_2 CANCELLED\n")
    (slurm / "script").unlink()
    again = slurm_launcher(tmp_path).executor(some := members(tmp_path))  # type: ignore[attr-defined]
    again.start(some)
    assert "--array" not in (slurm / "script").read_text()  # only the cancelled job is submitted
    assert sorted(there.job_id for there, _ in again.jobs) == ["17", "17_0", "17_1"]
    with pytest.raises(Stopped, match=r"jobs 17.*scancel 17"):
        again.stop()


def test_a_preempted_job_saves_and_is_requeued_and_a_lost_one_is_named(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("QUEUE_SECONDS", 0.0), ("CHECK_SECONDS", 0.0), ("SETTLE_SECONDS", 0.2)):
        monkeypatch.setattr(f"attnbench.launch.submitit_slurm.{name}", seconds)
    some = members(tmp_path, "schedule.epochs=100")
    executor = slurm_launcher(tmp_path).executor(some)  # type: ignore[attr-defined]
    executor.start(some)
    (slurm / "states").write_text("17_0 RUNNING\n17_1 PENDING\n17_2 OUT_OF_MEMORY\n")

    here = {"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": "1"}
    command = [sys.executable, "-m", "submitit.core._submit", str(tmp_path / ".submitit" / "%j")]
    environment = os.environ | here | {"SUBMITIT_EXECUTOR": "slurm", "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = some[0].folder.path / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    job.terminate()
    assert job.wait(100) != 0
    assert (slurm / "requests").read_text() == "requeue 17_0\n"
    assert some[0].folder.record()["status"] == "stopped"

    (slurm / "states").write_text("17_0 PENDING\n17_1 PENDING\n17_2 OUT_OF_MEMORY\n")
    over: list[Member] = []

    def ended() -> list[Member]:
        over.extend(executor.ended())
        return over

    wait_for(ended)
    assert over == [some[2]] and some[2].outcome is not None
    assert some[2].outcome.state == "failed" and "OUT_OF_MEMORY" in str(some[2].outcome.failure)
    assert some[0].began is not None and some[1].began is None


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["hydra.launcher.nodes=2"], "hydra.launcher.tasks_per_node"),
        (["hydra.launcher.timeout_min=2"], "hydra.launcher.signal_delay_s"),
        (["hydra.launcher.timeout_min=soon"], "hydra.launcher.timeout_min"),
        (["hydra.launcher.partitoin=gpu"], "hydra.launcher.partitoin"),
    ],
)
def test_a_bad_option_is_refused(slurm: Path, tmp_path: Path, overrides: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        slurm_launcher(tmp_path, *overrides)
    assert refused.value.where == where
    assert not (slurm / "script").exists()


def test_without_slurm_another_launcher_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="hydra/launcher=pool"):
        slurm_launcher(tmp_path)


def test_tasks_that_would_start_processes_are_refused(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.processes"):
        slurm_launcher(tmp_path, "hydra.launcher.tasks_per_node=2").executor(members(tmp_path, "runtime.processes=2"))  # type: ignore[attr-defined]


class Task:
    """A task of a job over two nodes, with the attributes of submitit's JobEnvironment."""

    num_tasks, num_nodes, global_rank, local_rank = 4, 2, 3, 1
    job_id, hostnames = "17_2", ["node1", "node2"]


def test_the_tasks_of_a_job_over_two_nodes_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    variables = ranked(Task())
    assert variables.pop("MASTER_PORT").isdecimal()
    assert variables == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # the GPU that SLURM bound to this task
    assert ranked(Task())["LOCAL_RANK"] == "0"
