"""``hydra/launcher=ray``: members as tasks of a Ray cluster.

A task watches over its member's process on the node where Ray put it, and returns how it ended: a member that is
killed takes neither Ray's worker nor another member along. A worker or a node that is lost has its members continued
elsewhere.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from attnbench.base import files
from attnbench.base.cores import cores
from attnbench.base.errors import ConfigError, Failure, StorageError
from attnbench.config.configuration import Config
from attnbench.config.options import Count, NonNegative, Positive
from attnbench.launch.executor import Member
from attnbench.launch.process import run_in_process, signals
from attnbench.runs.attempt import Outcome

LOOK_SECONDS = 1.0  # between two looks at the folders of members that have not begun
RETRIES = 3  # of a task whose worker or node was lost
STORE_BYTES = 100 * 2**20  # of a cluster of our own: no member shares objects


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Ray:
    """One task a member.

    Attributes:
        address: ``auto`` or ``host:port`` of a cluster to join; None for the one that RAY_ADDRESS names, else one
            that is started here and ends with the sweep.
        num_cpus: of a member.
        num_gpus: of a member, a part of one too; None for one for each of its processes if the cluster has any.
        slots: members at a time; None for as many as the cluster has room for.
    """

    address: str | None = None
    num_cpus: Positive = 1.0
    num_gpus: NonNegative | None = None
    slots: Count | None = None

    def refuse(self) -> None:
        """Raise ConfigError if there is no Ray, or a member can have no such part of GPUs."""
        if importlib.util.find_spec("ray") is None:
            what = "hydra/launcher=ray needs the package ray"
            raise ConfigError(what, "hydra/launcher", "pip install attnbench[ray]")
        if self.num_gpus and self.num_gpus > 1 and self.num_gpus % 1:
            todo = "it is a whole number, or a part of one GPU"
            raise ConfigError(f"num_gpus={self.num_gpus}", "hydra.launcher.num_gpus", todo)

    def executor(self, members: Sequence[Member]) -> RayExecutor:
        """Join the cluster, or start one.

        Raises:
            ConfigError: there is none to join, or none of its nodes has what a member needs.
        """
        import ray

        owned = _connect(self.address)
        try:
            there = ray.cluster_resources().get("GPU", 0)
            gpus = {member: self.gpus_of(member, there) for member in members}
            for most in sorted(set(gpus.values())):
                _refuse_misfit(self.num_cpus, most, owned)
            return RayExecutor(members, self.num_cpus, gpus, self.slots)
        except BaseException:
            ray.shutdown()
            raise

    def gpus_of(self, member: Member, there: float) -> float:
        """GPUs of a member: none on the CPU, else what is asked for, else one for each process if there are any.

        Raises:
            ConfigError: it has more processes than GPUs.
        """
        if not member.on_gpu:
            return 0
        if self.num_gpus is None:
            return (member.processes or 1) if there else 0
        member.share(self.num_gpus)
        if self.num_gpus and (member.processes or 1) > max(1, self.num_gpus):
            what = f"num_gpus={self.num_gpus:g} for {member.processes} processes"
            raise ConfigError(what, "hydra.launcher.num_gpus", "each of them needs a GPU of its own")
        return self.num_gpus


def _connect(address: str | None) -> bool:
    """Join a cluster or start one; whether it was started."""
    import ray

    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if wanted != "local":
            ray.init(wanted, **quiet)
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # as the members of a pool have it
        ray.init(wanted, num_cpus=cores(), include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        return True
    except (RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        todo = "name one that runs (ray status), or null to start one here"
        raise ConfigError(f"no Ray cluster at {wanted}: {first}", "hydra.launcher.address", todo) from error


def _refuse_misfit(cpus: float, gpus: float, owned: bool) -> None:
    """Refuse what no node of our own cluster will ever have; another cluster may grow."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    what = f"no node has {cpus:g} CPUs and {gpus:g} GPUs for a member"
    has = {f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}
    if owned:
        raise ConfigError(what, "hydra.launcher", f"this one has {', '.join(has)}")
    print(f"waiting for the cluster to grow: {what} yet, but {', '.join(sorted(has))}", file=sys.stderr)


class RayExecutor:
    """Members as tasks.

    Args:
        members: all that will come.
        cpus: of a member.
        gpus: of each member.
        slots: members at a time.
    """

    patience = 2.0

    def __init__(self, members: Sequence[Member], cpus: float, gpus: dict[Member, float], slots: int | None) -> None:
        import ray

        self.cpus, self.gpus, self.slots = cpus, gpus, slots or len(members)
        self.task = ray.remote(max_retries=RETRIES, num_cpus=cpus)(watch_over)
        self.tasks: dict[Any, Member] = {}
        self.looked = 0.0
        self.stops = 0
        self.marks = {outputs: _mark(outputs) for outputs in {_outputs(member) for member in members}}

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Submit a task for each member while there are slots; returns the members whose tasks were submitted."""
        started = ready[: self.slots - len(self.tasks)]
        for member in started:
            member.submitted()
            gpus = self.gpus[member]
            here = Here(os.getcwd(), self.marks[_outputs(member)], _variables())
            task = self.task.options(num_gpus=gpus, name=member.name or "member")
            self.tasks[task.remote(member.config, here, max(1, int(self.cpus)), gpus > 0)] = member
        return started

    def ended(self) -> list[Member]:
        """Members whose task is over, with their outcome."""
        import ray

        if not self.tasks:
            return []
        self._look()
        done, _ = ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        over = [(task, self.tasks.pop(task)) for task in done]
        for task, member in over:
            member.outcome = _outcome(task, member)
        return [member for _, member in over]

    def _look(self) -> None:
        if time.monotonic() - self.looked > LOOK_SECONDS:
            self.looked = time.monotonic()
            for member in self.tasks.values():
                member.look()

    def stop(self) -> None:
        """Ask the tasks to end their runs; the second time, kill them."""
        import ray

        self.stops += 1
        for task in self.tasks:
            ray.cancel(task, force=self.stops > 1)

    def close(self) -> None:
        """Leave the cluster and remove the files that nodes looked for."""
        import ray

        ray.shutdown()
        for mark in self.marks.values():
            mark.unlink(missing_ok=True)


def _outcome(task: Any, member: Member) -> Outcome | None:
    """How a task's member ended; None if the task was called off before it began."""
    import ray

    try:
        outcome: Outcome = ray.get(task)
        return outcome
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [""]
        reason = lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
        what = f"Ray lost it, {type(error).__name__}: {reason}"
        return member.lost(Failure(what, member.folder.path, "run the same command to continue it"))


def _outputs(member: Member) -> Path:
    return Path(member.config.tree["paths"]["outputs"])


def _mark(outputs: Path) -> Path:
    """A file by which a node shows that it sees this folder."""
    files.make_folder(outputs)
    with files.changing(outputs):
        handle, name = tempfile.mkstemp(prefix=".launcher-", dir=outputs)
        os.close(handle)
    return Path(name).absolute()


def _variables() -> dict[str, str]:
    """What attnbench reads of the environment."""
    return {key: value for key, value in os.environ.items() if key.startswith("ATTNBENCH_")}


@dataclasses.dataclass(frozen=True)
class Here:
    """Where the launcher is: its working folder, a file in the folder of runs, its variables."""

    folder: str
    mark: Path
    variables: dict[str, str]


def watch_over(config: Config, here: Here, threads: int, gpu: bool) -> Outcome:
    """What a task does, on its node: run the member in the launcher's folder, and wait for its end.

    Ray calls a task off by an interrupt, which then asks the member to save.
    """
    import ray

    try:
        os.chdir(here.folder)
        here.mark.stat()
    except OSError as error:
        todo = "the nodes of a cluster share the folders that a sweep is started in and writes to"
        return Outcome("failed", failure=StorageError(f"{os.uname().nodename} does not have it", error.filename, todo))
    gpus = ",".join(str(number) for number in ray.get_gpu_ids()) if gpu else ""
    with signals(signal.SIGINT) as received:
        return run_in_process(config, {**here.variables, "CUDA_VISIBLE_DEVICES": gpus}, threads, received)
