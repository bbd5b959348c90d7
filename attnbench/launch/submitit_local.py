"""``hydra/launcher=submitit_local``: members as submitit's jobs on this machine, to try out what SLURM will get."""

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
    """Jobs on this machine, by ``Slurm``'s options.

    Attributes:
        cpus_per_task: threads of a task; None to share the cores out.
        gpus_per_node: the first ones, and the same for every job.
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
        """Jobs for these members, which share the cores of this machine."""
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
    """Members as jobs that end with this process.

    Args:
        submitter: submitit's executor, which starts jobs.
        jobs: of the members.
        slots: jobs at a time.
    """

    patience = 2.0

    def __init__(self, submitter: Any, jobs: dict[Member, Job], slots: int) -> None:
        self.submitter, self.todo, self.slots = submitter, jobs, slots
        self.jobs: list[tuple[Any, Member]] = []

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Submit a job for each member while there are slots; returns the members whose jobs were submitted."""
        started = ready[: self.slots - len(self.jobs)]
        for member in started:
            member.submitted()
            with _untouched():
                self.jobs.append((self.submitter.submit(self.todo[member]), member))
        return started

    def ended(self) -> list[Member]:
        """Members whose job is over, with their outcome."""
        over = []
        for there, member in self.jobs:
            member.look()
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
def _untouched() -> Iterator[None]:
    """Start a process that the terminal's Ctrl-C does not reach: submitit would kill what it runs a second later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
