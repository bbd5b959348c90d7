"""How a run stands, from what lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.base.errors import BusyError, StorageError
from attnbench.runs.folder import RunFolder


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        state: ``done``, ``failed``, ``stopped`` (it can be continued), ``running`` or ``not run``.
        reason: why it failed or stopped.
        result: the contents of result.json of a run that is done.
    """

    state: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)


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
