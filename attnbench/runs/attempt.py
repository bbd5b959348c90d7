"""One attempt at a run. It ends as done, skipped, failed or stopped; failures are returned, not raised."""

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
        state: ``done``, ``skipped`` (the run was done before), ``failed`` or ``stopped``.
        folder: the run's folder; empty if the configuration was refused.
        result: the contents of result.json, if the run is done.
        failure: why the run failed or stopped.
        shared: whether other runs in the same process may have caused the failure; alone, the run may succeed.
    """

    state: str
    folder: str = ""
    result: dict[str, Any] | None = None
    failure: Failure | None = None
    shared: bool = False


def attempt(configure: Callable[[], Config], train: Callable[[Config], dict[str, Any]] | None = None) -> Outcome:
    """Run a configuration unless its run is done already. Torch is imported only if the run has to be trained.

    Args:
        configure: returns the configuration; a Failure that it raises becomes the outcome.
        train: trains the run and returns its result; None for ``processes.train_in_processes``.
    """
    path = ""
    try:
        config = configure()
        folder = RunFolder(config.run_folder)
        path = str(folder.path)
        if config.tree["resume"] != "never" and (result := finished(config)):
            return Outcome("skipped", path, result)
        folder.refuse_busy()
        from attnbench.runs import processes

        return Outcome("done", path, (train or processes.train_in_processes)(config))
    except Stopped as stop:
        return Outcome("stopped", path, failure=stop)
    except Failure as failure:
        return Outcome("failed", path, failure=failure)
