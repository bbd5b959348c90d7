"""``hydra/launcher=submitit_slurm``: runs members as jobs of a SLURM array, with the options of Hydra's plugin.

All jobs are submitted at once and stay in the queue when this process ends. The same command then finds the jobs that
are pending or running, by the job ids in their runs' folders, and submits the missing ones.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from attnbench.base import files
from attnbench.base.errors import ConfigError, Stopped
from attnbench.config.options import Count, Index, Positive
from attnbench.launch.executor import Member
from attnbench.launch.submitit_job import Job, ended, folder, job, queue, refuse_without_submitit

ARRAY = 1000  # jobs of an array: SLURM's usual limit
QUEUE_SECONDS = 10.0  # interval between queries of SLURM's queue
CHECK_SECONDS = 1.0  # interval between checks for results of jobs
SETTLE_SECONDS = 30.0  # time for the files of an ended job to arrive from its node
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"REVOKED", "TIMEOUT", ""}  # "": SLURM has forgotten it

# Options that submitit has for every cluster; all others are specific to SLURM.
SHARED = {"name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"}
SHARED |= {"stderr_to_stdout"}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Slurm:
    """Runs each member as a job of an array. The options are those of sbatch, with submitit's names.

    Attributes:
        submitit_folder: the folder of job scripts and logs; ``%j`` is the job's id.
        timeout_min: time limit of a job in minutes; a run that takes longer saves, is requeued and continues.
        max_num_timeout: how often a job is requeued for that reason.
        signal_delay_s: how many seconds before the time limit a run is asked to save.
        tasks_per_node: 1 for a task that starts ``runtime.processes``; more to make each task a process of the run.
        gpus_per_node: GPUs of a job on each node; also the number of processes of a run that does not set it.
        array_parallelism: jobs at a time.
        setup: shell lines before a job's command.
        additional_parameters: further options of sbatch.
    """

    submitit_folder: str
    name: str
    timeout_min: Count
    max_num_timeout: Index
    signal_delay_s: Count
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    comment: str | None
    nodes: Count
    tasks_per_node: Count
    cpus_per_task: Count | None
    gpus_per_node: Index | None
    gpus_per_task: Count | None
    cpus_per_gpu: Count | None
    gres: str | None
    mem_gb: Positive | None
    mem_per_cpu: str | None
    mem_per_gpu: str | None
    array_parallelism: Count
    stderr_to_stdout: bool
    setup: list[str] | None
    additional_parameters: dict[str, Any] | None

    def refuse(self) -> None:
        """Raise ConfigError if submitit or SLURM is missing, or the options contradict each other."""
        if self.nodes > 1 and self.tasks_per_node == 1:
            what = f"there is only one task on each of {self.nodes} nodes"
            raise ConfigError(what, "hydra.launcher.tasks_per_node", "use one task for each GPU of a node")
        if self.signal_delay_s >= 60 * self.timeout_min:
            what = f"a signal {self.signal_delay_s} s before the end is too early for a job of {self.timeout_min} min"
            raise ConfigError(what, "hydra.launcher.signal_delay_s", "make it shorter than the job")
        refuse_without_submitit("submitit_slurm")
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            todo = "start the sweep where sbatch works, or use hydra/launcher=pool"
            raise ConfigError("SLURM is missing here: sbatch is not found", "hydra/launcher", todo)

    def executor(self, members: Sequence[Member]) -> SlurmExecutor:
        """Make jobs for these members, to be submitted as arrays."""
        tasks = self.nodes * self.tasks_per_node
        jobs = {member: job(member, tasks, self.gpus_per_node, self.cpus_per_task) for member in members}
        return SlurmExecutor(self._submitter(), jobs)

    def _submitter(self) -> Any:
        import submitit

        kept = {"submitit_folder", "max_num_timeout", "additional_parameters"}
        options = {key: value for key, value in asdict(self).items() if key not in kept and value is not None}
        submitter = submitit.AutoExecutor(
            folder(self.submitit_folder), cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
        )
        submitter.update_parameters(
            **{key if key in SHARED else f"slurm_{key}": value for key, value in options.items()},
            slurm_additional_parameters={"requeue": True, **(self.additional_parameters or {})},
            slurm_srun_args=["--kill-on-bad-exit=1"],
        )
        return submitter


class SlurmExecutor:
    """Runs members as jobs that continue after this process ends.

    Args:
        submitter: submitit's executor, which submits jobs to SLURM.
        jobs: the job of each member.
    """

    patience = 60.0

    def __init__(self, submitter: Any, jobs: dict[Member, Job]) -> None:
        self.submitter, self.todo = submitter, jobs
        self.jobs: list[tuple[Any, Member]] = []
        self.states: dict[str, str] = {}
        self.queried = self.checked = 0.0
        self.over: dict[str, float] = {}

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Find the jobs of members that were submitted before, and submit the others; returns all members."""
        if not ready:
            return []
        states = queue() or {}
        for member in ready:
            member.submitted()
        found = [(there, member) for member in ready if (there := _submitted(member, states))]
        self.jobs += found
        missing = [member for member in ready if member not in {one for _, one in found}]
        for first in range(0, len(missing), ARRAY):
            self._submit(missing[first : first + ARRAY])
        self.queried = time.monotonic()
        return ready

    def _submit(self, members: Sequence[Member]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit also prints the errors that it raises
                jobs = self.submitter.submit_array([self.todo[member] for member in members])
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            reason = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error))
            todo = "compare the options with sinfo and sacctmgr"
            raise ConfigError(f"SLURM refused the jobs: {reason}", "hydra.launcher", todo) from error
        for there, member in zip(jobs, members, strict=True):
            files.make_folder(member.folder.path)
            member.folder.write("job.json", {"job": there.job_id, "folder": str(self.submitter.folder)})
            self.jobs.append((there.task(0), member))

    def ended(self) -> list[Member]:
        """Members whose job has ended, with their outcomes; SLURM is queried only every few seconds."""
        if time.monotonic() - self.checked < CHECK_SECONDS:
            return []
        self.checked = time.monotonic()
        self._query()
        over = []
        for there, member in self.jobs:
            member.check_begun()
            if there.paths.result_pickle.exists() or self._is_over(there.job_id):
                state = self.states.get(there.job_id) or "is no longer in SLURM's queue"
                member.outcome = ended(member, there, state)
                over.append(member)
        self.jobs = [(there, member) for there, member in self.jobs if member not in over]
        return over

    def _query(self) -> None:
        if time.monotonic() - self.queried > QUEUE_SECONDS:
            self.queried = time.monotonic()
            states = queue()
            self.states = self.states if states is None else states
            for there, _ in self.jobs:
                if states is not None and states.get(there.job_id, "") not in OVER:
                    self.over.pop(there.job_id, None)
                elif states is not None:
                    self.over.setdefault(there.job_id, self.queried)

    def _is_over(self, number: str) -> bool:
        return time.monotonic() - self.over.get(number, float("inf")) > SETTLE_SECONDS

    def stop(self) -> None:
        """Stop watching, but keep the jobs: a Ctrl-C must not cancel jobs that have waited in the queue for days.

        Raises:
            Stopped: always.
        """
        arrays = " ".join(sorted({there.job_id.partition("_")[0] for there, _ in self.jobs}))
        todo = f"run the same command to watch them again, or scancel {arrays} to end them"
        raise Stopped("stopped watching; the jobs continue", f"jobs {arrays}", todo)

    def close(self) -> None:
        """Do nothing: SLURM keeps the jobs."""


def _submitted(member: Member, states: dict[str, str]) -> Any:
    """The member's job from an earlier start if it is still pending or running, else None."""
    import submitit

    there = files.read_object(member.folder.path / "job.json")
    if states.get(there.get("job", ""), "") in OVER:
        return None
    return submitit.SlurmJob(folder=Path(there["folder"]), job_id=there["job"])
