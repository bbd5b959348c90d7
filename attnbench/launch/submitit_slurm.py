"""``hydra/launcher=submitit_slurm``: members as jobs of a SLURM array, with the options of Hydra's submitit plugin.

All of them are handed to SLURM at once, and stay there when this process ends: the same command finds the jobs that
wait or run, by what their runs' folders say, and submits what is missing.
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

ARRAY = 1000  # jobs, SLURM's usual limit
ASK_SECONDS = 10.0  # between two questions to SLURM
LOOK_SECONDS = 1.0  # between two looks at what jobs left
SETTLE_SECONDS = 30.0  # in which the files of a job that is over have come, from its node
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
OVER |= {"REVOKED", "TIMEOUT", ""}  # "": SLURM has forgotten it

# What submitit names for all clusters; everything else is SLURM's own.
SHARED = {"name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"}
SHARED |= {"stderr_to_stdout"}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Slurm:
    """Jobs of an array; the options are sbatch's, by submitit's names.

    Attributes:
        submitit_folder: where job scripts and logs lie; ``%j`` is the job.
        timeout_min: minutes of a job; a run that takes longer saves, is requeued and continues.
        max_num_timeout: so often.
        signal_delay_s: seconds before the end of that time at which a run is asked to save.
        tasks_per_node: 1 for a task that starts ``runtime.processes``; more for one task a process of the run.
        gpus_per_node: also the processes of a run that leaves them open.
        array_parallelism: jobs at a time.
        setup: shell lines before a job's command.
        additional_parameters: of sbatch.
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
        """Raise ConfigError if there is no submitit or no SLURM here, or no way to use what is asked for."""
        if self.nodes > 1 and self.tasks_per_node == 1:
            what = f"one task on each of {self.nodes} nodes"
            raise ConfigError(what, "hydra.launcher.tasks_per_node", "use one for every GPU of a node")
        if self.signal_delay_s >= 60 * self.timeout_min:
            what = f"a signal {self.signal_delay_s} s before the end of {self.timeout_min} min"
            raise ConfigError(what, "hydra.launcher.signal_delay_s", "make it shorter than the job")
        refuse_without_submitit("submitit_slurm")
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            todo = "start it where sbatch works, or use hydra/launcher=pool"
            raise ConfigError("there is no SLURM here: sbatch is not found", "hydra/launcher", todo)

    def executor(self, members: Sequence[Member]) -> SlurmExecutor:
        """Jobs for these members, submitted as arrays."""
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
    """Members as jobs that outlive this process.

    Args:
        submitter: submitit's executor, which hands jobs to SLURM.
        jobs: of the members.
    """

    patience = 60.0

    def __init__(self, submitter: Any, jobs: dict[Member, Job]) -> None:
        self.submitter, self.todo = submitter, jobs
        self.jobs: list[tuple[Any, Member]] = []
        self.states: dict[str, str] = {}
        self.asked = self.looked = 0.0
        self.over: dict[str, float] = {}

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Find the members that SLURM has already, and submit the others; returns all of them."""
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
        self.asked = time.monotonic()
        return ready

    def _submit(self, members: Sequence[Member]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                jobs = self.submitter.submit_array([self.todo[member] for member in members])
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            said = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error))
            raise ConfigError(f"SLURM refuses the jobs: {said}", "hydra.launcher", "see sinfo, sacctmgr") from error
        for there, member in zip(jobs, members, strict=True):
            files.make_folder(member.folder.path)
            member.folder.write("job.json", {"job": there.job_id, "folder": str(self.submitter.folder)})
            self.jobs.append((there.task(0), member))

    def ended(self) -> list[Member]:
        """Members whose job is over, with their outcome; SLURM is asked every few seconds only."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return []
        self.looked = time.monotonic()
        self._ask()
        over = []
        for there, member in self.jobs:
            member.look()
            if there.paths.result_pickle.exists() or self._is_over(there.job_id):
                state = self.states.get(there.job_id) or "is gone"
                member.outcome = ended(member, there, state)
                over.append(member)
        self.jobs = [(there, member) for there, member in self.jobs if member not in over]
        return over

    def _ask(self) -> None:
        if time.monotonic() - self.asked > ASK_SECONDS:
            self.asked = time.monotonic()
            states = queue()
            self.states = self.states if states is None else states
            for there, _ in self.jobs:
                if states is not None and states.get(there.job_id, "") not in OVER:
                    self.over.pop(there.job_id, None)
                elif states is not None:
                    self.over.setdefault(there.job_id, self.asked)

    def _is_over(self, number: str) -> bool:
        return time.monotonic() - self.over.get(number, float("inf")) > SETTLE_SECONDS

    def stop(self) -> None:
        """Leave: what has waited in a queue for days is not thrown out by a Ctrl-C.

        Raises:
            Stopped: always.
        """
        arrays = " ".join(sorted({there.job_id.partition("_")[0] for there, _ in self.jobs}))
        todo = f"the same command watches them again, scancel {arrays} ends them"
        raise Stopped("stopped watching: the jobs wait and run on", f"jobs {arrays}", todo)

    def close(self) -> None:
        """Leave the jobs to SLURM."""


def _submitted(member: Member, states: dict[str, str]) -> Any:
    """The job of an earlier start that still waits or runs, or None."""
    import submitit

    there = files.read_json(member.folder.path / "job.json") or {}
    if states.get(there.get("job", ""), "") in OVER:
        return None
    return submitit.SlurmJob(folder=Path(there["folder"]), job_id=there["job"])
