"""The configuration and the weights of a trained network, read from its run's folder and checked before use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from attnbench.base import files
from attnbench.base.errors import ConfigError, StorageError, listed, reason
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.config.naming import flatten
from attnbench.models import weights

Which = Literal["last", "best"]

# The files that may hold a checkpoint: during a save, or after an interrupted one, the last has another name.
FILES: dict[Which, tuple[str, ...]] = {"last": ("last.pt", "next.pt", "previous.pt"), "best": ("best.pt",)}

# The groups that must be the same to load a backbone's weights, and keys in them that may differ.
BACKBONE = ("backbone", "attention", "placement")
APART = ("backbone.pretrained", "backbone.dropout", "backbone.weights")


def checkpoint(folder: Path, which: Which) -> tuple[dict[str, Any], str]:
    """A checkpoint whose hash is the one in ``SHA256SUMS``, and that hash.

    Raises:
        StorageError: the run has no such checkpoint, or it is damaged.
    """
    digest = files.read_sums(folder).get(f"{which}.pt")
    if digest is None:
        raise StorageError(f"the run has no {which} checkpoint", folder, "train it first")
    for name in FILES[which]:
        if (folder / name).exists():
            with open(folder / name, "rb") as file:  # opened once: a training run may replace the file meanwhile
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    file.seek(0)
                    return _content(file, folder / name), digest
    other = "best" if which == "last" else "last"
    what = f"{which}.pt is damaged or missing: its SHA-256 is not the one in SHA256SUMS"
    raise StorageError(what, folder, f"restore it, or use --which {other}")


def _content(file: IO[bytes], path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # undamaged, but not our checkpoint: torch may raise any exception
        raise StorageError(f"not a checkpoint: {reason(error)}", path) from error
    if not isinstance(state, dict) or not {"model", "config", "epoch"} <= state.keys():
        raise StorageError("not a checkpoint of a run", path)
    return state


def evaluated(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights that the run evaluates: the average if it keeps one. ``best.pt`` holds them as the model's."""
    return weights.stripped(state.get("average") or state["model"])


def refuse_other_config(config: Config, state: Mapping[str, Any], run: Path) -> None:
    """Refuse a config.yaml that differs from the configuration in the checkpoint, because it was edited after the run.

    Raises:
        StorageError: they differ; the message names the keys, with both values.
    """
    if differ := stored.differences(config, state["config"]):
        pairs = [f"{key}: {here} here, {there} there" for key, (there, here) in differ.items()]
        what = f"config.yaml is not the checkpoint's: {listed(pairs)}"
        raise StorageError(what, run, "restore config.yaml, or train again with resume=never")


def of_run(run: Path, config: Config) -> Mapping[str, Tensor]:
    """The weights of a classification run, to start a network with the same backbone and attention.

    Args:
        run: the run's folder.
        config: of the network.

    Raises:
        ConfigError: the run's backbone, attention or placement differs; the message names the keys.
        StorageError: the folder is not a run's, the run is not finished, or the checkpoint is damaged.
    """
    refuse_other_backbone(run, config)
    state, _ = checkpoint(run / "checkpoints", "last")
    if files.read_json(run / "result.json") is None:
        what = f"this run is not finished: its weights are those of epoch {state['epoch']}"
        raise StorageError(what, run, "finish it, or export its weights and start from the file")
    return evaluated(state)


def refuse_other_backbone(run: Path, config: Config) -> None:
    """Refuse a run whose backbone differs from that of a configuration.

    Raises:
        ConfigError: they differ; the message names the keys, with both values.
        StorageError: the folder is not a run's.
    """
    theirs = stored.checked(stored.read(run), run / "config.yaml")
    if "detector" in theirs.tree:
        what = f"this run is of a detector, {theirs.choices['detector']}"
        raise ConfigError(what, "backbone.weights", "give a classification run")
    there, here = (_backbone(one) for one in (theirs, config))
    differ = [key for key in here | there if here.get(key) != there.get(key)]
    if differ:
        pairs = [f"{key}: {there.get(key, 'none')} there, {here.get(key, 'none')} here" for key in differ]
        what = f"the backbone of {run} differs: {listed(pairs)}"
        raise ConfigError(what, "backbone.weights", "give a run of the same backbone, attention and placement")


def _backbone(config: Config) -> dict[str, Any]:
    """The configuration of a backbone with its attention: names of options, and values by dotted key."""
    named = {group: config.choices[group] for group in BACKBONE[:2]}
    values = dict(flatten({group: config.tree[group] for group in BACKBONE}))
    return named | {key: value for key, value in values.items() if key not in APART and not key.endswith("_target_")}
