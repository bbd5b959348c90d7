"""A run's weights once more over its validation split, or over the same data elsewhere."""

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


def evaluate(run: Path, which: Which = "last", words: Sequence[str] = ()) -> dict[str, Any]:
    """The task's metrics of a run's weights.

    Args:
        words: options of data or runtime other than in training, such as ``dataset.root=DIR``.

    Returns:
        The metrics (``top1`` and ``top5`` in percent), and what they are of: ``run``, ``which``, ``epoch``,
        ``images``, ``data``, ``same_data`` as in the training (None where the run left no result), ``device``, and
        ``changed``, the words that make the protocol another one.

    Raises:
        Failure: no such run or weights, data or device.
    """
    trained = load_run(run, which).told(words)
    with ready(trained) as opened:
        metrics = measured(trained, opened)
        return {**metrics, **_about(run, trained, opened, words)}


@torch.no_grad()
def measured(trained: Trained, opened: Ready) -> dict[str, float]:
    """The metrics of the whole validation split, each sample counted once."""
    task = trained.config.build("task", class_names=opened.data.classes)
    network = folded(opened.model, opened.process.reduced)
    with opened.process.autocast():
        metrics: dict[str, float] = task.evaluate(network, opened.batches("evaluating"), opened.process)
    return metrics


def _about(run: Path, trained: Trained, opened: Ready, words: Sequence[str]) -> dict[str, Any]:
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
        "changed": [word for word in words if word.partition("=")[0] not in NEUTRAL],
    }
