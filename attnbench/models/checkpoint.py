"""What a run's folder holds of a trained network: its configuration and its weights, both checked before use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import torch
import yaml
from torch import Tensor, nn

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config.composition import DETECTION, GROUPS, Config, flatten
from attnbench.models import weights

Which = Literal["last", "best"]

# The files that may hold a checkpoint: a save that is under way, or was cut short, leaves the last under another name.
FILES: dict[Which, tuple[str, ...]] = {"last": ("last.pt", "next.pt", "previous.pt"), "best": ("best.pt",)}

# What a backbone is: these must be the same where its weights come from. Dropout before a classifier is none of it.
BACKBONE = ("backbone", "attention", "placement")
APART = ("backbone.pretrained", "backbone.dropout")


def run_config(run: Path) -> Config:
    """The configuration of a run's folder.

    Raises:
        StorageError: it is no run's folder, or its configuration is not valid.
    """
    path = run / "config.yaml"
    if not path.is_file():
        seeds = sorted(run.glob("seed*/config.yaml"))
        todo = f"did you mean {seeds[0].parent}?" if seeds else "give outputs/runs/<dataset>/<backbone>/<name>/seed<k>"
        raise StorageError("not a run's folder: it has no config.yaml", run, todo)
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StorageError(f"cannot read: {weights.first_line(error)}", path) from error
    return stored_config(record, path)


def stored_config(record: Any, where: Path) -> Config:
    """A configuration that comes from a file, checked as one that is typed.

    Raises:
        StorageError: it is none, or not valid.
    """
    parts = record if isinstance(record, dict) else {}
    choices = parts.get("choices")
    tree = {key: value for key, value in parts.items() if key not in ("choices", "hash")}
    lacking = [group for group in GROUPS if not isinstance(tree.get(group), dict)]
    if lacking or not isinstance(choices, dict) or "attention" not in choices:
        raise StorageError(f"no configuration of a run: it lacks {', '.join(lacking) or 'choices'}", where)
    try:
        return Config(tree, choices).updated({group: {} for group in (*GROUPS, *DETECTION) if group in tree})
    except ConfigError as error:
        what = f"its configuration is not valid: {error.what}"
        raise StorageError(what, f"{where}: {error.where}", "restore the file") from error


def checkpoint(folder: Path, which: Which) -> tuple[dict[str, Any], str]:
    """A checkpoint whose hash is the listed one, and that hash.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    digest = listed_hashes(folder).get(f"{which}.pt")
    if digest is None:
        raise StorageError(f"the run has no {which} checkpoint", folder, "train it first")
    for name in FILES[which]:
        if (folder / name).exists():
            with open(folder / name, "rb") as file:  # one open file: a run under way may replace it after the hash
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    file.seek(0)
                    return _content(file, folder / name), digest
    other = "best" if which == "last" else "last"
    what = f"{which}.pt is damaged or missing: its SHA-256 is not the one in SHA256SUMS"
    raise StorageError(what, folder, f"restore it, or use --which {other}")


def listed_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each checkpoint in a folder, by file name."""
    path = folder / "SHA256SUMS"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _content(file: IO[bytes], path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whole, but no checkpoint of ours: torch raises whatever it stumbles over
        raise StorageError(f"not a checkpoint: {weights.first_line(error)}", path) from error
    if not isinstance(state, dict) or not {"model", "config", "epoch"} <= state.keys():
        raise StorageError("not a checkpoint of a run", path)
    return state


def evaluated(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights that the run evaluates: the average where it keeps one. ``best.pt`` has them as its model."""
    return weights.stripped(state.get("average") or state["model"])


def refuse_other_config(config: Config, state: Mapping[str, Any], run: Path) -> None:
    """Refuse a config.yaml that was edited after the run: the checkpoint knows what it was."""
    here = dict(flatten(config.tree))
    differ = [key for key, value in state["config"].items() if key != "data" and here.get(key, ...) != value]
    if differ:
        pairs = [f"{key}: {here.get(key)} here, {state['config'][key]} there" for key in sorted(differ)]
        what = f"config.yaml is not the checkpoint's: {weights.listed(pairs)}"
        raise StorageError(what, run, "restore config.yaml, or train again with resume=never")


def load_backbone(body: nn.Module, run: Path, config: Config) -> None:
    """Load the backbone of a classification run, its attention included, into that of a detector.

    Args:
        body: the backbone without its classifier, with its attention.
        run: the run's folder.
        config: of the detector.

    Raises:
        ConfigError: the run's backbone, attention or placement is another; the line names the keys.
        StorageError: not a run's folder, a damaged checkpoint, or weights that do not fit.
    """
    refuse_other_backbone(run, config)
    state, _ = checkpoint(run / "checkpoints", "last")
    theirs = evaluated(state)
    heads = tuple(f"{name}." for name, child in body.named_children() if isinstance(child, nn.Identity))
    kept = {key: value for key, value in theirs.items() if not key.startswith(heads)}
    weights.load(body, kept, run / "checkpoints" / "last.pt")


def refuse_other_backbone(run: Path, config: Config) -> None:
    """Refuse a run whose backbone is not that of a configuration.

    Raises:
        ConfigError: names the keys that differ, with both values.
        StorageError: not a run's folder.
    """
    theirs = run_config(run)
    if "detector" in theirs.tree:
        what = f"this run is of a detector, {theirs.choices['detector']}"
        raise ConfigError(what, "detector.backbone_from", "give a classification run")
    there, here = (_backbone(one) for one in (theirs, config))
    differ = [key for key in here | there if here.get(key) != there.get(key)]
    if differ:
        pairs = [f"{key}: {there.get(key, 'none')} there, {here.get(key, 'none')} here" for key in differ]
        what = f"the backbone of {run} is another: {weights.listed(pairs)}"
        raise ConfigError(what, "detector.backbone_from", "give a run of the same backbone, attention and placement")


def _backbone(config: Config) -> dict[str, Any]:
    """What a backbone is by its configuration: dotted keys and values, and the names of the options taken."""
    named = {group: config.choices[group] for group in BACKBONE[:2]}
    values = dict(flatten({group: config.tree[group] for group in BACKBONE}))
    return named | {key: value for key, value in values.items() if key not in APART and not key.endswith("_target_")}
