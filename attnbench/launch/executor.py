"""Running the members of a sweep, wherever their processes are.

A member is a run's configuration. The folder that it names says how it stands, so no list is kept: whatever happens to
a member, to its launcher or to the machine, the same call runs what is missing and continues what broke.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from attnbench.base.errors import BusyError, Failure, Stopped
from attnbench.config.configuration import Config
from attnbench.launch.process import POLL_SECONDS, signals
from attnbench.runs.attempt import Outcome
from attnbench.runs.data import DataCheck
from attnbench.runs.folder import RunFolder
from attnbench.runs.status import finished


@dataclass(eq=False)
class Member:
    """A run in a sweep.

    Attributes:
        name: how people know it from the others.
        config: the run.
        outcome: how it ended; None while it waits or runs.
        began: when its process began, by the monotonic clock; None while it waits.
        not_before: when it may be tried, by the monotonic clock.
        status: what its folder said when it was handed out.
    """

    name: str
    config: Config
    outcome: Outcome | None = None
    began: float | None = None
    not_before: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which may not exist yet."""
        return RunFolder(self.config.run_folder)

    @property
    def on_gpu(self) -> bool:
        """Whether it takes a GPU where there is one."""
        return bool(self.config.tree["runtime"]["device"] != "cpu")

    @property
    def processes(self) -> int | None:
        """How many it is trained by; None if it leaves that to the launcher."""
        number: int | None = self.config.tree["runtime"]["processes"]
        return number

    def share(self, gpus: float) -> None:
        """Have it trained by as many processes as it gets whole GPUs, unless it says itself by how many."""
        if self.processes is None and self.on_gpu and gpus > 1:
            self.config = self.config.updated({"runtime": {"processes": int(gpus)}})

    def submitted(self) -> None:
        """Remember what its folder says before a process begins that can be watched only there."""
        self.status = self.folder.record()

    def look(self) -> None:
        """Find out from its folder whether it has begun."""
        if self.began is None and self.folder.record() != self.status:
            self.began = time.monotonic()

    def lost(self, failure: Failure) -> Outcome:
        """The outcome of a member whose launcher's process ended without one, from what its folder says since."""
        path = str(self.folder.path)
        if result := self.folder.result():
            return Outcome("done", path, result)
        failure = self.folder.failure_since(self.status) or failure
        return Outcome("stopped" if isinstance(failure, Stopped) else "failed", path, failure=failure)


class Watcher(Protocol):
    """Shows how the members are doing; it is called about ten times a second."""

    def update(self, members: Sequence[Member]) -> None:
        """Show how the members are doing."""
        ...

    def close(self) -> None:
        """Stop showing; no update follows."""
        ...


class Executor(Protocol):
    """Where members run.

    Attributes:
        patience: seconds before a member that another process holds is tried again.
    """

    patience: float

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Start as many members as there is room for, in their order, and return those that were started."""
        ...

    def ended(self) -> Sequence[Member]:
        """Members that have left since the last call; those that came to an end have an outcome."""
        ...

    def stop(self) -> None:
        """Ask the members to save and end; called again, to end at once."""
        ...

    def close(self) -> None:
        """Release what was needed to run members."""
        ...


class Launcher(Protocol):
    """The options of a way to run members."""

    def refuse(self) -> None:
        """Raise ConfigError if it cannot work here; makes nothing."""
        ...

    def executor(self, members: Sequence[Member]) -> Executor:
        """Where these members will run."""
        ...


def run(members: Sequence[Member], launcher: Launcher, watcher: Watcher) -> None:
    """Give every member an outcome.

    Raises:
        Stopped: a signal came; the members that ran were asked to save, and have ended.
        Failure: there is nowhere to run them.
    """
    with closing(watcher):
        data_check = DataCheck()
        for member in members:
            member.outcome = settled(member, data_check)
        waiting = [member for member in members if member.outcome is None]
        if waiting:
            with closing(launcher.executor(waiting)) as executor:
                _work(members, waiting, executor, watcher)
        watcher.update(members)


def settled(member: Member, data_check: DataCheck) -> Outcome | None:
    """The outcome of a member that was done before, or that cannot be run under its name; None if it is to be run."""
    path = str(member.folder.path)
    try:
        result = finished(member.config, data_check) if member.config.tree["resume"] == "auto" else None
    except Failure as failure:
        return Outcome("failed", path, failure=failure)
    return Outcome("skipped", path, result) if result else None


def _work(members: Sequence[Member], waiting: list[Member], executor: Executor, watcher: Watcher) -> None:
    running = passed_on = 0
    with signals(signal.SIGTERM, signal.SIGINT) as received:
        while running or (waiting and not received):
            if len(received) > passed_on:
                passed_on = len(received)
                executor.stop()
            for member in executor.ended():
                running -= 1
                if member.outcome is None or isinstance(member.outcome.failure, BusyError):
                    member.outcome, member.began = None, None
                    member.not_before = time.monotonic() + executor.patience
                    waiting.append(member)
            if not received:
                for member in executor.start([m for m in waiting if m.not_before <= time.monotonic()]):
                    waiting.remove(member)
                    running += 1
            watcher.update(members)
            time.sleep(POLL_SECONDS)
    if received:
        watcher.update(members)
        raise Stopped("stopped by a signal", todo="run the same command to continue")
