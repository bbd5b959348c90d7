"""How a run stands, from what lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.base.errors import BusyError, ConfigError, DataError, OtherData, StorageError, listed
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.runs.data import Look
from attnbench.runs.folder import RunFolder


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        state: ``done``, ``failed``, ``stopped`` (it can be continued), ``running``, ``not run`` or ``other data``.
        reason: why it failed or stopped.
        result: the contents of result.json of a run that is done.
        unseen: why its data could not be compared with those that a run would open now; empty if they were.
    """

    state: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    unseen: str = ""


def finished(config: Config, look: Look | None = None) -> dict[str, Any] | None:
    """The result of a configuration's run, if it is done and was made of these values and these data.

    Args:
        look: compares data; to be shared where many runs are looked at.

    Raises:
        ConfigError: the run was made with other values: an option declares others now.
        OtherData: the run, finished or not, was made of other data.
        DataError: its data cannot be opened.
    """
    folder = RunFolder(config.run_folder)
    if (folder.path / "config.yaml").is_file():
        _refuse_other_values(config, folder.path)
    (look or Look()).refuse_other(config, folder.path)
    return folder.result()


def _refuse_other_values(config: Config, run: Path) -> None:
    if differ := stored.differences(config, stored.read(run).identity):
        pairs = listed(f"{key}: {there} there, {here} here" for key, (there, here) in differ.items())
        todo = "an option that declares another default now needs a _revision_; or write the value out"
        raise ConfigError(f"a run of this name was made with other values: {pairs}", run, todo)


def standing_of(config: Config, look: Look) -> Standing:
    """How the run of a configuration stands; a finished one that was made of other data does not count."""
    stands = standing(config.run_folder)
    if stands.state != "done":
        return stands
    try:
        look.refuse_other(config, config.run_folder)
    except OtherData as other:
        return Standing("other data", str(other))
    except DataError as error:
        return replace(stands, unseen=f"data of {config.dataset_name} not compared: {error.what} ({error.where})")
    return stands


def standing(path: Path) -> Standing:
    """How the run of a folder stands, from what lies in it."""
    folder = RunFolder(path)
    if result := folder.result():
        return Standing("done", result=result)
    status = files.read_json(path / "status.json") or {}
    if status.get("status") in ("failed", "stopped"):
        return Standing(status["status"], status.get("error", ""))
    if status.get("status") != "running":
        return Standing("not run")
    try:
        folder.refuse_busy()
    except BusyError:
        return Standing("running")
    except StorageError as error:
        return Standing("stopped", str(error))
    return Standing("stopped", "ended without a word")
