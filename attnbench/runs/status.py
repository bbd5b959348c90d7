"""The status of a run, read from its folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnbench.base.errors import BusyError, ConfigError, DataError, OtherData, StorageError, listed
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.runs import initial_weights, record_faults
from attnbench.runs.data import DataCheck
from attnbench.runs.environment import changed_since
from attnbench.runs.folder import RunFolder

log = logging.getLogger("attnbench")


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
        state: ``done``, ``failed``, ``stopped`` (it can be continued), ``running``, ``not run``, ``unreadable``,
            ``other data`` or ``other weights`` (initial ones).
        reason: why it failed or stopped, what cannot be read, or how its data or initial weights differ.
        result: the contents of result.json if the run is done.
        unseen: why its data could not be compared with those that a run would open now; empty if they were compared.
    """

    state: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    unseen: str = ""


def finished(config: Config, data_check: DataCheck | None = None) -> dict[str, Any] | None:
    """The result of a configuration's run, if it is done and was made with the present values and data.

    Args:
        data_check: pass the same one for many runs, so that data they share are read only once.

    Raises:
        ConfigError: the run was made with other values, because an option now declares other defaults.
        OtherData: the run, finished or not, was trained on other data; or it started from other weights.
        DataError: its data cannot be opened.
        StorageError: its result is damaged.
    """
    folder = RunFolder(config.run_folder)
    if (folder.path / "config.yaml").is_file():
        _refuse_other_values(config, folder.path)
    (data_check or DataCheck()).refuse_other(config, folder.path)
    result = folder.result()
    if result:
        if line := changed_since(config, folder.path):
            log.warning("%s", line)
        try:
            initial_weights.refuse_other(config, folder.path)
        except StorageError as error:
            log.warning("%s", error)
    return result


def _refuse_other_values(config: Config, run: Path) -> None:
    if differ := stored.differences(config, stored.read(run).identity):
        pairs = listed(f"{key}: {there} then, {here} now" for key, (there, here) in differ.items())
        todo = "an option whose default has changed needs a _revision_; or give the former value"
        raise ConfigError(f"a run of this name was made with other values: {pairs}", run, todo)


def run_status(config: Config, data_check: DataCheck) -> RunStatus:
    """The status of a configuration's run, compared with the present data and initial weights if it is finished."""
    status = folder_status(config.run_folder)
    if status.state != "done":
        return status
    try:
        data_check.refuse_other(config, config.run_folder)
    except OtherData as other:
        return RunStatus("other data", str(other))
    except DataError as error:
        return replace(status, unseen=f"data of {config.dataset_name} not compared: {error.what} ({error.where})")
    try:
        initial_weights.refuse_other(config, config.run_folder)
    except OtherData as other:
        return RunStatus("other weights", str(other))
    except StorageError as error:
        return replace(status, unseen=str(error))
    return status


def folder_status(path: Path) -> RunStatus:
    """The status of the run in a folder, without a check of its data."""
    folder = RunFolder(path)
    try:
        result = folder.result()
    except StorageError as error:
        return RunStatus("unreadable", error.what)
    if result:
        return RunStatus("done", result=result)
    if fault := record_faults.fault_of_file(path / "result.json"):
        return RunStatus("unreadable", fault)
    record = folder.record()
    if record.get("status") in ("failed", "stopped"):
        return RunStatus(record["status"], str(record.get("error", "")))
    if record.get("status") != "running":
        return RunStatus("not run")
    try:
        folder.refuse_busy()
    except BusyError:
        return RunStatus("running")
    except StorageError as error:
        return RunStatus("stopped", str(error))
    return RunStatus("stopped", "its process ended without reporting why")
