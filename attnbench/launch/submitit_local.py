"""``hydra/launcher=submitit_local``: runs members as submitit jobs on this machine, to try them before SLURM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from attnbench.base.cores import cores
from attnbench.config.options import Count, Index
from attnbench.launch.executor import Member
from attnbench.launch.submitit_job import Job, ended, folder, job, refuse_without_submitit


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Local:
    """Runs each member as a job on this machine; the options are a subset of ``Slurm``'s.

    Attributes:
        cpus_per_task: threads of a task; None to divide the cores among the tasks.
        gpus_per_node: how many GPUs a job uses; every job uses the same first ones.
        array_parallelism: jobs at a time.
    """

    submitit_folder: str
    timeout_min: Count
    max_num_timeout: Index
    signal_delay_s: Count
    tasks_per_node: Count
    cpus_per_task: Count | None
    gpus_per_node: Index | None
    array_parallelism: Count
    stderr_to_stdout: bool
    setup: list[str] | None

    def refuse(self) -> None:
        """Raise ConfigError if the package submitit is not installed."""
        refuse_without_submitit("submitit_local")

    def executor(self, members: Sequence[Member]) -> LocalExecutor:
        """Make jobs for these members, which share the cores of this machine."""
        import submitit

        threads = self.cpus_per_task or max(1, cores() // (self.array_parallelism * self.tasks_per_node))
        jobs = {member: job(member, self.tasks_per_node, self.gpus_per_node, threads) for member in members}
        submitter = submitit.LocalExecutor(folder(self.submitit_folder), max_num_timeout=self.max_num_timeout)
        submitter.update_parameters(
            timeout_min=self.timeout_min,
            signal_delay_s=self.signal_delay_s,
            tasks_per_node=self.tasks_per_node,
            gpus_per_node=self.gpus_per_node or 0,
            stderr_to_stdout=self.stderr_to_stdout,
            setup=self.setup or (),
        )
        return LocalExecutor(submitter, jobs, self.array_parallelism)


class LocalExecutor:
    """Runs members as jobs that end with this process.

    Args:
        submitter: submitit's executor, which starts jobs.
        jobs: the job of each member.
        slots: jobs at a time.
    """

    patience = 2.0

    def __init__(self, submitter: Any, jobs: dict[Member, Job], slots: int) -> None:
        self.submitter, self.todo, self.slots = submitter, jobs, slots
        self.jobs: list[tuple[Any, Member]] = []

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Submit jobs for as many members as there are free slots, and return these members."""
        started = ready[: self.slots - len(self.jobs)]
        for member in started:
            member.submitted()
            with _without_sigint():
                self.jobs.append((self.submitter.submit(self.todo[member]), member))
        return started

    def ended(self) -> list[Member]:
        """Members whose job has ended, with their outcomes."""
        over = []
        for there, member in self.jobs:
            member.check_begun()
            if there.done():
                member.outcome = ended(member, there.task(0), "ended without a result")
                over.append(member)
        self.jobs = [(there, member) for there, member in self.jobs if member not in over]
        return over

    def stop(self) -> None:
        """Ask the jobs to save and end."""
        for there, _ in self.jobs:
            with suppress(ProcessLookupError):
                os.kill(int(there.job_id), signal.SIGTERM)

    def close(self) -> None:
        """Do nothing: the jobs have ended by themselves."""


@contextmanager
def _without_sigint() -> Iterator[None]:
    """Block SIGINT in processes started inside: on Ctrl-C, submitit would kill its job after only a second."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
