"""One attempt at a run: done, skipped, failed or stopped, but never an exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnbench.base.errors import Failure, Stopped
from attnbench.config.configuration import Config
from attnbench.runs.folder import RunFolder
from attnbench.runs.status import finished


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: ``done``, ``skipped`` (it was done already), ``failed`` or ``stopped``.
        folder: the run's folder, empty if the configuration was refused.
        result: what the run left, if it is done.
        failure: why it is not.
        shared: whether that failure was not the run's alone: without other runs in its process it may do.
    """

    state: str
    folder: str = ""
    result: dict[str, Any] | None = None
    failure: Failure | None = None
    shared: bool = False


def attempt(configure: Callable[[], Config], train: Callable[[Config], dict[str, Any]] | None = None) -> Outcome:
    """Run a configuration, unless its result is there. Torch is imported only if there is something to do.

    Args:
        configure: gives the configuration, or raises a Failure that then is the outcome.
        train: how to train it to its result; None for ``processes.train_in_processes``.
    """
    path = ""
    try:
        config = configure()
        folder = RunFolder(config.run_folder)
        path = str(folder.path)
        if config.tree["resume"] == "auto" and (result := finished(config)):
            return Outcome("skipped", path, result)
        folder.refuse_busy()
        from attnbench.runs import processes

        return Outcome("done", path, (train or processes.train_in_processes)(config))
    except Stopped as stop:
        return Outcome("stopped", path, failure=stop)
    except Failure as failure:
        return Outcome("failed", path, failure=failure)
