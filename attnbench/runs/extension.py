"""Continues a finished run for more epochs (``resume=extend``), as the run that would have had them from the start.

The longer run has a folder of its own, because its name holds its epochs. It takes over the last state, the best
weights and the metrics of the longest finished run that differs in nothing but its epochs. This is possible if the
learning rate does not depend on the number of epochs: then both runs are equal as far as the shorter one goes, on a CPU
to the last bit.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from attnbench.base import files
from attnbench.base.errors import ConfigError, Failure, StorageError
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.models.checkpoint import checkpoint
from attnbench.runs import initial_weights
from attnbench.runs.data import DataCheck, kept
from attnbench.runs.folder import RunFolder
from attnbench.training.checkpoints import Checkpoints

log = logging.getLogger("attnbench")

EPOCHS = "schedule.epochs"
MOST = 100  # runs that are looked at for a hint
LINES = ("metrics.jsonl", "gauges.jsonl")


def source(config: Config) -> Path | None:
    """The run that ``resume=extend`` continues; None if the run itself has begun, or another ``resume`` is given.

    Raises:
        ConfigError: the learning rate depends on the number of epochs.
        StorageError: there is no such run, or its initial weights are not there to compare.
        OtherData: it was trained on other data, or started from other weights.
        DataError: the data cannot be opened.
    """
    if config.tree["resume"] != "extend" or "last.pt" in files.read_sums(config.run_folder / "checkpoints"):
        return None
    refuse_law(config)
    found = [(epochs, run) for run in _others(config) if (epochs := _shorter(config, run))]
    if not found:
        what = f"no finished run of fewer epochs that is otherwise the same as this one of {_epochs(config)}"
        raise StorageError(what, config.group_folder.parent, "train it without resume=extend")
    _, run = max(found)
    DataCheck().refuse_other(config, run)
    initial_weights.refuse_other(config, run)
    return run


def hint(config: Config) -> str:
    """A line for a run that starts anew although a shorter one could be continued; "" for any other run.

    Only runs whose config.yaml is the same but for a line or two are found: the hint must not take time.
    """
    begun = "last.pt" in files.read_sums(config.run_folder / "checkpoints")
    if config.tree["resume"] != "auto" or begun or not _is_open_ended(config):
        return ""
    ours = _lines(yaml.safe_dump(config.record(), sort_keys=False))
    for run in _others(config)[:MOST]:
        theirs = _lines((run / "config.yaml").read_text(encoding="utf-8", errors="replace"))
        changed = {line.strip().partition(":")[0] for line in ours.symmetric_difference(theirs)}
        if changed == {"hash", "epochs"} and (epochs := _shorter(config, run)):
            return f"a finished run of {epochs} epochs is there ({run}); resume=extend continues it"
    return ""


def _lines(text: str) -> set[str]:
    return set(text.splitlines())


def refuse_law(config: Config) -> None:
    """Refuse a schedule whose rate at an epoch depends on the number of epochs.

    Raises:
        ConfigError: says which law it is, and what to do instead.
    """
    if not _is_open_ended(config):
        law = config.tree["schedule"].get("law", config.choices["schedule"])
        what = f"schedule.law={law} spreads the rate over all epochs, so a longer run differs from its first epoch on"
        todo = "train it without resume=extend, or start from the shorter run's weights: backbone.weights=RUN"
        raise ConfigError(what, "resume=extend", todo)


def _is_open_ended(config: Config) -> bool:
    return bool(getattr(config.build("schedule"), "open_ended", False))  # somebody's own schedule may not say


def adopt(config: Config, run: Path, events: str) -> None:
    """Take over the state of a shorter run; the folder's last checkpoint, written last, makes it complete.

    Args:
        run: the folder of the shorter run.
        events: the folder of TensorBoard's events, below the run's folder.

    Raises:
        StorageError: its checkpoints are damaged, or this run's folder cannot be written.
    """
    folder = RunFolder(config.run_folder)
    state, _ = checkpoint(run / "checkpoints", "last")
    identity: dict[str, Any] = config.identity
    identity |= {"data": state["config"]["data"]} if "data" in state["config"] else {}
    ours = Checkpoints(folder.checkpoints, identity)
    _copy(run, folder.path, events)
    if record := kept(run):
        weights = initial_weights.kept(run)
        folder.write("data.json", record.as_dict() | ({"weights": weights} if weights else {}))
    if "best.pt" in files.read_sums(run / "checkpoints"):
        best, _ = checkpoint(run / "checkpoints", "best")
        ours.save_best(best["model"], {key: best[key] for key in best if key not in ("model", "config")})
    ours.save({key: value for key, value in state.items() if key != "config"})
    log.info("resume=extend: continues %s, which has %d epochs, to %d", run, state["epoch"], _epochs(config))


def _copy(run: Path, folder: Path, events: str) -> None:
    """Copy what was recorded for each epoch."""
    for name in LINES:
        if (run / name).exists():
            content = (run / name).read_bytes()
            files.write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    with files.changing(folder / events):
        (folder / events).mkdir(parents=True, exist_ok=True)
        for path in (run / "tb").rglob("events.*"):
            shutil.copy2(path, folder / events)


def _others(config: Config) -> list[Path]:
    """The runs of the same data set, backbone and seed, but not the run itself."""
    parents = dict.fromkeys(group.parent for group in config.group_folders)
    found = (path.parent for parent in parents for path in parent.glob(f"*/seed{config.seed}/config.yaml"))
    return sorted(run for run in found if run != config.run_folder)


def _shorter(config: Config, run: Path) -> int:
    """The epochs of a finished run that differs from a configuration in having fewer; 0 for any other run."""
    try:
        theirs = stored.read(run)
    except Failure:  # it was made by another release, or its folder is damaged: not a run to continue
        return 0
    differ = stored.differences(config, theirs.identity)
    epochs, ours = differ.get(EPOCHS, (0, 0))
    is_shorter = differ.keys() == {EPOCHS} and isinstance(epochs, int) and epochs < ours
    return epochs if is_shorter and RunFolder(run).result() else 0


def _epochs(config: Config) -> int:
    return int(config.tree["schedule"]["epochs"])
