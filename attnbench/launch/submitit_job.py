"""A submitit job, which runs a member in a separate process.

When the job is asked to end, it asks the member to save. If its time is up or it is preempted, submitit then requeues
it, and it continues from there. Hydra's own submitit plugin requeues at once, from the last checkpoint.
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
    """The function that submitit calls for a member in each task of its job.

    Attributes:
        config: the run's configuration.
        threads: the number of torch's threads of a task; None to use all cores of the task.
        folder: the launcher's working folder.
    """

    config: Config
    threads: int | None
    folder: str

    def __call__(self) -> Outcome:
        """Run the member, or one of its processes if the job has several tasks.

        Raises:
            SystemExit: the member was stopped, so this job has no result; a requeued job may have one.
        """
        import submitit

        here = submitit.JobEnvironment()
        os.chdir(self.folder)
        time_is_up = signal.Signals[f"SIG{here.USR_SIG}"]
        requeue: Any = signal.getsignal(time_is_up)
        with signals(time_is_up, signal.SIGTERM, signal.SIGINT) as received:
            outcome = run_in_process(self.config, ranked(here), self.threads or _cores(here), received)
        if here.global_rank != 0:
            return _secondary_outcome(outcome)
        if outcome.state == "stopped":
            if time_is_up in received or _preempted(here):
                requeue(time_is_up, None)
            raise SystemExit(Stopped.code)
        return outcome

    def checkpoint(self) -> Any:
        """The function of a requeued job: the same one, since the run's folder records its progress."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _preempted(here: Any) -> bool:
    """Whether SLURM preempts this job. SLURM does not requeue a job that ends within its grace period."""
    return here.cluster == "slurm" and (queue() or {}).get(here.job_id) == "RUNNING"


def queue() -> dict[str, str] | None:
    """The states of this user's SLURM jobs by their ids, also of recently ended ones; None if SLURM fails to answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {number: state for number, _, state in (line.strip().partition(" ") for line in output.splitlines())}


def _secondary_outcome(outcome: Outcome) -> Outcome:
    """The outcome of a task other than the main one. A failure exits, which ends the others: they would wait for it."""
    if outcome.state == "failed" and outcome.failure:
        raise SystemExit(outcome.failure.code)
    return outcome


def ranked(here: Any) -> dict[str, str]:
    """The variables, as torchrun sets them, that make the tasks of a job the processes of one run."""
    if here.num_tasks == 1:
        return {}
    alone = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1  # SLURM bound one GPU to this task
    return {
        "RANK": str(here.global_rank),
        "LOCAL_RANK": "0" if alone else str(here.local_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "MASTER_ADDR": here.hostnames[0] if here.num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(20_000 + zlib.crc32(here.job_id.encode()) % 40_000),
    }


def _cores(here: Any) -> int:
    """The number of cores that a task may use."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else max(1, cores() * here.num_nodes // here.num_tasks)


def job(member: Member, tasks: int, gpus: int | None, threads: int | None) -> Job:
    """Make a member's job.

    Raises:
        ConfigError: the job has several tasks, each of which would start several processes.
    """
    if tasks > 1 and (member.processes or 1) > 1:
        what = f"{tasks} tasks would start {member.processes} processes each"
        raise ConfigError(what, "runtime.processes", "set either this or hydra.launcher.tasks_per_node")
    if tasks == 1:
        member.share(gpus or 0)
    return Job(member.config, threads, os.getcwd())


def ended(member: Member, there: Any, how: str) -> Outcome:
    """The outcome of a member whose job ended, from the job's result or else from the run's folder.

    Args:
        there: submitit's job.
        how: how the job ended, for the error message.
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
    """Create the folder of job scripts and logs, and return its absolute path."""
    path = Path(name).absolute()
    fixed = Path(str(path).partition("%")[0]).parent if "%" in str(path) else path
    files.make_folder(fixed)
    return path


def refuse_without_submitit(launcher: str) -> None:
    """Raise ConfigError if the package submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        what = f"hydra/launcher={launcher} needs the package submitit"
        raise ConfigError(what, "hydra/launcher", "pip install attnbench[slurm]")
