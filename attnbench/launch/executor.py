"""Run the members of a sweep on any launcher.

A member is a run with its configuration. Its state is in its run folder, so the sweep keeps no list of its own:
whatever happens to a member, its launcher or the machine, the same call runs what is missing and continues what broke.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
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
        name: what is shown to distinguish it from the others.
        config: the run's configuration.
        outcome: how it ended; None while it waits or runs. A member that has one from the start is not run.
        began: when its process began, by the monotonic clock; None while it waits.
        not_before: the earliest time to start it, by the monotonic clock.
        status: the contents of its folder's status.json when it was submitted.
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
        """Whether it uses a GPU if the machine has one."""
        return bool(self.config.tree["runtime"]["device"] != "cpu")

    @property
    def processes(self) -> int | None:
        """The number of processes that train it; None if the launcher chooses."""
        number: int | None = self.config.tree["runtime"]["processes"]
        return number

    def share(self, gpus: float) -> None:
        """Use one process for each whole GPU, unless the run sets ``runtime.processes`` itself."""
        if self.processes is None and self.on_gpu and gpus > 1:
            self.config = self.config.updated({"runtime": {"processes": int(gpus)}})

    def submitted(self) -> None:
        """Remember its status before it is submitted, so that a later change shows that its process began."""
        self.status = self.folder.record()

    def check_begun(self) -> None:
        """Set ``began`` once its folder shows that its process began."""
        if self.began is None and self.folder.record() != self.status:
            self.began = time.monotonic()

    def lost(self, failure: Failure) -> Outcome:
        """The outcome of a member whose process ended without reporting one, from its folder.

        Args:
            failure: the reason if the folder records none.
        """
        path = str(self.folder.path)
        if result := self.folder.result():
            return Outcome("done", path, result)
        failure = self.folder.failure_since(self.status) or failure
        return Outcome("stopped" if isinstance(failure, Stopped) else "failed", path, failure=failure)


class Watcher(Protocol):
    """Shows the progress of the members."""

    def update(self, members: Sequence[Member]) -> None:
        """Show the members' progress; called about ten times a second."""
        ...

    def close(self) -> None:
        """Stop showing; called after the last update."""
        ...


class Executor(Protocol):
    """Runs members in processes, tasks or jobs.

    Attributes:
        patience: seconds to wait before retrying a member whose run folder another process holds.
    """

    patience: float

    def start(self, ready: Sequence[Member]) -> Sequence[Member]:
        """Start as many members as there is room for, in order, and return those that were started."""
        ...

    def ended(self) -> Sequence[Member]:
        """Members that are no longer running since the last call; those without an outcome are to be retried."""
        ...

    def stop(self) -> None:
        """Ask the members to save and end; a second call ends them at once."""
        ...

    def close(self) -> None:
        """Release the executor's resources."""
        ...


class Launcher(Protocol):
    """A way to run members, with its options."""

    def refuse(self) -> None:
        """Raise ConfigError if this launcher cannot work here; creates nothing."""
        ...

    def executor(self, members: Sequence[Member]) -> Executor:
        """Make the executor for these members."""
        ...


def run(members: Sequence[Member], launcher: Launcher, watcher: Watcher) -> None:
    """Run the members until every one has an outcome.

    Raises:
        Stopped: a signal was received; the running members were asked to save, and have ended.
        Failure: the launcher cannot run them.
    """
    with closing(watcher):
        data_check = DataCheck()
        for member in members:
            member.outcome = member.outcome or settled(member, data_check)
        waiting = [member for member in members if member.outcome is None]
        if waiting:
            with closing(launcher.executor(waiting)) as executor:
                _work(members, waiting, executor, watcher)
        watcher.update(members)


def settled(member: Member, data_check: DataCheck) -> Outcome | None:
    """The outcome of a member that needs no run: it is done, or its folder cannot be used. None if it is to be run."""
    path = str(member.folder.path)
    try:
        result = finished(member.config, data_check) if member.config.tree["resume"] != "never" else None
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
        states = Counter(m.outcome.state if m.outcome else "not started" for m in members)
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        raise Stopped("stopped by a signal", counts, "run the same command to continue")
