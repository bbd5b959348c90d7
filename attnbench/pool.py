"""Members of a sweep, each in a process of its own, one on every GPU or on every slot of a CPU.

A member is a run's configuration. The folder that it names says how it stands, so the pool keeps no list of its own:
whatever happens to a member, to the pool or to the machine, the same call runs what is missing and continues what
broke.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attnbench.attempt import Outcome, attempt
from attnbench.config import Config
from attnbench.errors import BusyError, Failure, Stopped
from attnbench.folder import RunFolder

POLL_SECONDS = 0.1
BUSY_SECONDS = 2.0  # before a member that another process holds is tried again

# Imported once, in the process that the members' are forked from, and not once a member.
PRELOADED = ["attnbench.run", "attnbench.tasks.classification", "torch.utils.tensorboard"]


@dataclass
class Member:
    """A run in a sweep.

    Attributes:
        name: what tells it from the others, for people.
        config: the run.
        outcome: how it ended; None while it waits or runs.
    """

    name: str
    config: Config
    outcome: Outcome | None = None
    not_before: float = 0.0

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.config.run_folder)


@dataclass
class Slot:
    """A place for one member at a time: its environment, and the process that is there."""

    environment: dict[str, str]
    threads: int
    member: Member | None = None
    process: Any = None
    output: Path = field(default_factory=Path)
    since: float = 0.0


class Watcher(Protocol):
    """Who is told how the members stand, about ten times a second."""

    def update(self, members: Sequence[Member], slots: Sequence[Slot]) -> None: ...
    def close(self) -> None: ...


def slots(count: int | None = None) -> list[Slot]:
    """One slot for each GPU that may be seen, else ``count`` slots (two by default) that share the CPU's cores."""
    cores = len(os.sched_getaffinity(0))
    gpus = visible_gpus()
    if gpus:
        wanted = [gpus[i % len(gpus)] for i in range(count or len(gpus))]
        threads = max(1, cores // len(wanted))
        return [Slot({"CUDA_VISIBLE_DEVICES": gpu}, threads) for gpu in wanted]
    number = count or min(2, cores)
    return [Slot({}, max(1, cores // number)) for _ in range(number)]


def visible_gpus() -> list[str]:
    """The numbers of the GPUs that may be used, found without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]"))


class Pool:
    """Runs members, as many at a time as there are slots."""

    def __init__(self, places: Sequence[Slot], watcher: Watcher) -> None:
        self.places, self.watcher = list(places), watcher
        self.stopping = 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def run(self, members: Sequence[Member]) -> None:
        """Give every member an outcome.

        Raises:
            Stopped: a signal came; the members that ran were asked to save, and have ended.
        """
        for member in members:
            member.outcome = finished(member)
        waiting = [member for member in members if member.outcome is None]
        with self._signals():
            while any(place.member for place in self.places) or (waiting and not self.stopping):
                self._collect(waiting)
                self._start(waiting)
                self.watcher.update(members, self.places)
                time.sleep(POLL_SECONDS)
        self.watcher.update(members, self.places)
        if self.stopping:
            raise Stopped("stopped by a signal", todo="the same command continues")

    def _start(self, waiting: list[Member]) -> None:
        now = time.monotonic()
        for place in self.places:
            ready = next((m for m in waiting if m.not_before <= now), None)
            if place.member is None and ready is not None and not self.stopping:
                waiting.remove(ready)
                place.member, place.since = ready, now
                place.output = Path(tempfile.mkstemp(prefix="attnbench-", suffix=".log")[1])
                arguments = (ready.config, place.environment, place.threads, place.output)
                place.process = self.context.Process(target=_process, args=arguments)
                place.process.start()

    def _collect(self, waiting: list[Member]) -> None:
        for place in self.places:
            if place.member is None or place.process.is_alive():
                continue
            place.process.join()
            member, place.member = place.member, None
            member.outcome = ended(member, place.process.pid, place.process.exitcode, place.output)
            place.output.unlink(missing_ok=True)
            if isinstance(member.outcome.failure, BusyError):
                member.outcome, member.not_before = None, time.monotonic() + BUSY_SECONDS
                waiting.append(member)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass the first SIGINT or SIGTERM on as a request to save, the second one as a command to end."""

        def stop(number: int, frame: object) -> None:
            self.stopping += 1
            for place in self.places:
                if place.member is not None and place.process.pid:
                    os.kill(place.process.pid, signal.SIGTERM)

        kinds = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(kind, stop) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)


def finished(member: Member) -> Outcome | None:
    """The outcome of a member that was done before, or None."""
    result = member.folder.result() if member.config.tree["resume"] == "auto" else None
    return Outcome("skipped", str(member.folder.path), result) if result else None


def ended(member: Member, pid: int, code: int, output: Path) -> Outcome:
    """The outcome of a member whose process ended, from what it left in its folder.

    A process that ended without a word, killed or by ``sys.exit``, gets its end written into status.json and what it
    printed into train.log.
    """
    path = str(member.folder.path)
    if code == 0 and (result := member.folder.result()):
        return Outcome("done", path, result)
    if code == BusyError.code:
        return Outcome("failed", path, failure=BusyError("another process holds this run", path, "wait for it"))
    said = member.folder.said(pid)
    if said is None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = Failure(how, path, "the same command continues it")
        member.folder.died(said, output.read_text(encoding="utf-8", errors="replace"))
    return Outcome("stopped" if isinstance(said, Stopped) else "failed", path, failure=said)


def _process(config: Config, environment: dict[str, str], threads: int, output: Path) -> None:
    """A member's process: out of reach of the terminal's Ctrl-C, and asked to save if the pool dies."""
    os.setsid()
    _save_when_orphaned()
    os.environ.update(environment, ATTNBENCH_CORES=str(threads))
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, _interrupt)
    outcome = attempt(lambda: config)
    if outcome.failure:
        print(f"error: {outcome.failure}", file=sys.stderr)
        sys.exit(outcome.failure.code)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _save_when_orphaned() -> None:
    """Ask the kernel for a SIGTERM when the parent ends, where it can do that (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
