"""What a job of submitit's does: it watches over a member's process.

Asked to end, it has the member save. If its time is over or it has to make room, submitit then requeues it, and it
continues where it was; Hydra's own submitit plugin requeues at once, with what the last checkpoint holds.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.base.cores import cores
from attnbench.base.errors import ConfigError, Failure, Stopped
from attnbench.config.configuration import Config
from attnbench.launch.executor import Member
from attnbench.launch.process import run_in_process, signals
from attnbench.runs.attempt import Outcome


@dataclass
class Job:
    """A member as submitit calls it, in each of a job's tasks.

    Attributes:
        config: the run.
        threads: of torch, for a task.
        folder: the launcher's working folder.
    """

    config: Config
    threads: int | None
    folder: str

    def __call__(self) -> Outcome:
        """Run the member, or one process of it if the job has several tasks.

        Raises:
            SystemExit: it was stopped, and this job has no result; the next one may have.
        """
        import submitit

        here = submitit.JobEnvironment()
        os.chdir(self.folder)
        time_is_up = signal.Signals[f"SIG{here.USR_SIG}"]
        requeue: Any = signal.getsignal(time_is_up)
        with signals(time_is_up, signal.SIGTERM, signal.SIGINT) as received:
            outcome = run_in_process(self.config, ranked(here), self.threads or _cores(here), received)
        if here.global_rank != 0:
            return _led(outcome)
        if outcome.state == "stopped":
            if time_is_up in received or _preempted(here):
                requeue(time_is_up, None)
            raise SystemExit(Stopped.code)
        return outcome

    def checkpoint(self) -> Any:
        """What a requeued job does: the same, since a run's folder holds how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _preempted(here: Any) -> bool:
    """Whether SLURM asks this job to make room: it would not requeue one that ends in the time that it gives."""
    return here.cluster == "slurm" and (queue() or {}).get(here.job_id) == "RUNNING"


def queue() -> dict[str, str] | None:
    """The states of this user's SLURM jobs, those that ended lately too; None if SLURM does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {number: state for number, _, state in (line.strip().partition(" ") for line in said.splitlines())}


def _led(outcome: Outcome) -> Outcome:
    """The end of a task beside the main one: a failure ends the others, which would wait for it."""
    if outcome.state == "failed" and outcome.failure:
        raise SystemExit(outcome.failure.code)
    return outcome


def ranked(here: Any) -> dict[str, str]:
    """The variables that make a job's tasks the processes of one run, as torchrun would set them."""
    if here.num_tasks == 1:
        return {}
    alone = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1  # the GPU that SLURM bound to this task
    return {
        "RANK": str(here.global_rank),
        "LOCAL_RANK": "0" if alone else str(here.local_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "MASTER_ADDR": here.hostnames[0] if here.num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(20_000 + zlib.crc32(here.job_id.encode()) % 40_000),
    }


def _cores(here: Any) -> int:
    """The cores that a task may use."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, cores() * here.num_nodes // here.num_tasks)


def job(member: Member, tasks: int, gpus: int | None, threads: int | None) -> Job:
    """A member's job.

    Raises:
        ConfigError: its processes shall be tasks of the job, and start others.
    """
    if tasks > 1 and (member.processes or 1) > 1:
        what = f"{tasks} tasks that start {member.processes} processes each"
        raise ConfigError(what, "runtime.processes", "leave it out, or hydra.launcher.tasks_per_node")
    if tasks == 1:
        member.share(gpus or 0)
    return Job(member.config, threads, os.getcwd())


def ended(member: Member, there: Any, how: str) -> Outcome:
    """The outcome of a member whose job is over, from what the job left, or else from the run's folder.

    Args:
        there: submitit's job.
        how: how the job ended, for a reason.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError

    if not there.paths.result_pickle.exists():
        return member.lost(Failure(f"its job {how}", there.paths.stderr, "run the same command to continue it"))
    try:
        outcome: Outcome = there.result()
    except (FailedJobError, UncompletedJobError) as error:
        raised = [line for line in str(error).splitlines() if line and line[0].isalpha() and "Error" in line]
        what = raised[-1] if raised else "its job failed"
        return member.lost(Failure(what, there.paths.stderr, "run the same command to continue it"))
    return outcome


def folder(name: str) -> Path:
    """The folder of job scripts and logs, made."""
    path = Path(name).absolute()
    fixed = Path(str(path).partition("%")[0]).parent if "%" in str(path) else path
    files.make_folder(fixed)
    return path


def refuse_without_submitit(launcher: str) -> None:
    """Raise ConfigError if the package submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        what = f"hydra/launcher={launcher} needs the package submitit"
        raise ConfigError(what, "hydra/launcher", "pip install attnbench[slurm]")
