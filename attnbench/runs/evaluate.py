"""Evaluates a run's weights again, on its validation split or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attnbench.config.naming import NEUTRAL
from attnbench.data.record import DataRecord, from_dict
from attnbench.models.checkpoint import Which
from attnbench.models.folding import folded
from attnbench.runs.load import Ready, Trained, load_run, ready


def evaluate(run: Path, which: Which = "last", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The task's metrics of a run's weights.

    Args:
        overrides: options of dataset or runtime that differ from the training, such as ``dataset.root=DIR``.

    Returns:
        The metrics (``top1`` and ``top5`` in percent), and what was evaluated: ``run``, ``which``, ``epoch``,
        ``images``, ``data``, ``device``; ``same_data``, whether the data are those of the training (None if the run has
        no result); and ``changed``, the overrides that change the protocol.

    Raises:
        Failure: the run, its weights, the data or the device cannot be found or used.
    """
    trained = load_run(run, which).with_overrides(overrides)
    with ready(trained) as opened:
        metrics = measured(trained, opened)
        return {**metrics, **_about(run, trained, opened, overrides)}


@torch.no_grad()
def measured(trained: Trained, opened: Ready) -> dict[str, float]:
    """The metrics over the whole validation split; each sample counts once."""
    task = trained.config.build("task", class_names=opened.data.classes)
    network = folded(opened.model, opened.process.reduced)
    with opened.process.autocast():
        metrics: dict[str, float] = task.evaluate(network, opened.batches("evaluating"), opened.process)
    return metrics


def _about(run: Path, trained: Trained, opened: Ready, overrides: Sequence[str]) -> dict[str, Any]:
    checkpoint, result = trained.about["checkpoint"], trained.about["result"] or {}
    then = from_dict(result.get("data"))
    now = DataRecord(opened.data.source, opened.data.fingerprint)
    return {
        "run": str(run),
        "which": checkpoint["which"],
        "epoch": checkpoint["epoch"],
        "images": opened.val.samples,
        "data": {"source": opened.data.source, "fingerprint": opened.data.fingerprint},
        "same_data": not then.difference(now) if then else None,
        "device": str(opened.process.device),
        "changed": [override for override in overrides if override.partition("=")[0] not in NEUTRAL],
    }
