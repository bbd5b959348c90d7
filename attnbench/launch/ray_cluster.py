"""``hydra/launcher=ray``: runs members as tasks of a Ray cluster.

A task starts its member in a separate process on the node that Ray chose, waits for it, and returns its outcome, so a
killed member stops neither Ray's worker nor other members. If a worker or node is lost, its members continue elsewhere.
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

CHECK_SECONDS = 1.0  # interval between checks whether members have begun
RETRIES = 3  # how often a task is retried whose worker or node was lost
STORE_BYTES = 100 * 2**20  # object store of a cluster started here: small, since members share no objects


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Ray:
    """Runs each member as a task of a Ray cluster.

    Attributes:
        address: ``auto`` or ``host:port`` of a cluster to join; None for the cluster that RAY_ADDRESS names, or else
            for a new one that ends with the sweep.
        num_cpus: CPUs of a member.
        num_gpus: GPUs of a member, which may be a fraction; None for one GPU for each of its processes, if the cluster
            has GPUs.
        slots: members at a time; None for as many as the cluster has room for.
    """

    address: str | None = None
    num_cpus: Positive = 1.0
    num_gpus: NonNegative | None = None
    slots: Count | None = None

    def refuse(self) -> None:
        """Raise ConfigError if Ray is not installed, or ``num_gpus`` is a fraction above 1."""
        if importlib.util.find_spec("ray") is None:
            what = "hydra/launcher=ray needs the package ray"
            raise ConfigError(what, "hydra/launcher", "pip install attnbench[ray]")
        if self.num_gpus and self.num_gpus > 1 and self.num_gpus % 1:
            what = f"num_gpus={self.num_gpus} is a fraction above 1"
            raise ConfigError(what, "hydra.launcher.num_gpus", "use a whole number, or a fraction of one GPU")

    def executor(self, members: Sequence[Member]) -> RayExecutor:
        """Join or start a cluster.

        Raises:
            ConfigError: there is no cluster to join, or no node of a new one has enough CPUs and GPUs for a member.
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
        """The GPUs of a member: 0 on the CPU, else ``num_gpus``, else one for each process if the cluster has GPUs.

        Args:
            there: the GPUs of the cluster.

        Raises:
            ConfigError: the member has more processes than GPUs.
        """
        if not member.on_gpu:
            return 0
        if self.num_gpus is None:
            return (member.processes or 1) if there else 0
        member.share(self.num_gpus)
        if self.num_gpus and (member.processes or 1) > max(1, self.num_gpus):
            what = f"num_gpus={self.num_gpus:g} for {member.processes} processes"
            raise ConfigError(what, "hydra.launcher.num_gpus", "use at least one GPU for each process")
        return self.num_gpus


def _connect(address: str | None) -> bool:
    """Join a cluster or start one; returns whether it was started."""
    import ray

    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if wanted != "local":
            ray.init(wanted, **quiet)
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # the same priority as members of a pool
        ray.init(wanted, num_cpus=cores(), include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        return True
    except (RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        todo = "name a running cluster (see ray status), or use null to start one here"
        raise ConfigError(f"no Ray cluster at {wanted}: {first}", "hydra.launcher.address", todo) from error


def _refuse_misfit(cpus: float, gpus: float, owned: bool) -> None:
    """Refuse CPUs and GPUs that no node has, if the cluster was started here; another cluster may still grow."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    what = f"no node has the {cpus:g} CPUs and {gpus:g} GPUs of a member"
    has = {f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}
    if owned:
        raise ConfigError(what, "hydra.launcher", f"this machine has {', '.join(has)}")
    print(f"waiting for the cluster to grow: {what} yet; nodes have {', '.join(sorted(has))}", file=sys.stderr)


class RayExecutor:
    """Runs members as Ray tasks.

    Args:
        members: all members that will be started.
        cpus: CPUs of a member.
        gpus: GPUs of each member.
        slots: members at a time; None for all of them.
    """

    patience = 2.0

    def __init__(self, members: Sequence[Member], cpus: float, gpus: dict[Member, float], slots: int | None) -> None:
        import ray

        self.cpus, self.gpus, self.slots = cpus, gpus, slots or len(members)
        self.task = ray.remote(max_retries=RETRIES, num_cpus=cpus)(watch_over)
        self.tasks: dict[Any, Member] = {}
        self.checked = 0.0
        self.stops = 0
        self.marks = {outputs: _mark(outputs) for outputs in {_outputs(member) for member in members}}

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Submit tasks for as many members as there are free slots, and return these members."""
        started = ready[: self.slots - len(self.tasks)]
        for member in started:
            member.submitted()
            gpus = self.gpus[member]
            context = LauncherContext(os.getcwd(), self.marks[_outputs(member)], _variables())
            task = self.task.options(num_gpus=gpus, name=member.name or "member")
            self.tasks[task.remote(member.config, context, max(1, int(self.cpus)), gpus > 0)] = member
        return started

    def ended(self) -> list[Member]:
        """Members whose task has ended, with their outcomes."""
        import ray

        if not self.tasks:
            return []
        self._check_begun()
        done, _ = ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        over = [(task, self.tasks.pop(task)) for task in done]
        for task, member in over:
            member.outcome = _outcome(task, member)
        return [member for _, member in over]

    def _check_begun(self) -> None:
        if time.monotonic() - self.checked > CHECK_SECONDS:
            self.checked = time.monotonic()
            for member in self.tasks.values():
                member.check_begun()

    def stop(self) -> None:
        """Ask the tasks to stop their runs; a second call kills them."""
        import ray

        self.stops += 1
        for task in self.tasks:
            ray.cancel(task, force=self.stops > 1)

    def close(self) -> None:
        """Leave the cluster, and remove the files by which nodes recognise the outputs folder."""
        import ray

        ray.shutdown()
        for mark in self.marks.values():
            mark.unlink(missing_ok=True)


def _outcome(task: Any, member: Member) -> Outcome | None:
    """The outcome of a task's member; None if the task was cancelled before it began."""
    import ray

    try:
        outcome: Outcome = ray.get(task)
        return outcome
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [""]
        reason = lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
        what = f"Ray lost its task with {type(error).__name__}: {reason}"
        return member.lost(Failure(what, member.folder.path, "run the same command to continue it"))


def _outputs(member: Member) -> Path:
    return Path(member.config.tree["paths"]["outputs"])


def _mark(outputs: Path) -> Path:
    """Create a file in the outputs folder, by which a node can check that it sees the same folder."""
    files.make_folder(outputs)
    with files.changing(outputs):
        handle, name = tempfile.mkstemp(prefix=".launcher-", dir=outputs)
        os.close(handle)
    return Path(name).absolute()


def _variables() -> dict[str, str]:
    """The environment variables that attnbench reads."""
    return {key: value for key, value in os.environ.items() if key.startswith("ATTNBENCH_")}


@dataclasses.dataclass(frozen=True)
class LauncherContext:
    """The launcher's working folder, a file in its outputs folder, and its environment variables."""

    folder: str
    mark: Path
    variables: dict[str, str]


def watch_over(config: Config, context: LauncherContext, threads: int, gpu: bool) -> Outcome:
    """The function of a task: run the member in the launcher's working folder and wait for its end.

    Ray cancels a task with SIGINT, which makes this function ask the member to save.
    """
    import ray

    try:
        os.chdir(context.folder)
        context.mark.stat()
    except OSError as error:
        what = f"node {os.uname().nodename} does not see the launcher's folder"
        todo = "start the sweep in a folder that all nodes share, and write to one"
        return Outcome("failed", failure=StorageError(what, error.filename, todo))
    gpus = ",".join(str(number) for number in ray.get_gpu_ids()) if gpu else ""
    with signals(signal.SIGINT) as received:
        return run_in_process(config, {**context.variables, "CUDA_VISIBLE_DEVICES": gpus}, threads, received)
