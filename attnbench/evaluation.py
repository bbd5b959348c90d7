"""``attnbench eval RUN``: a run's weights once more over its validation split, or over the same data elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from attnbench import printing
from attnbench.config import NEUTRAL
from attnbench.folding import folded
from attnbench.stored import Which
from attnbench.trained import Ready, Trained, load_run, ready
from attnbench.words import Words


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
    then = result.get("data", {}).get("fingerprint")
    return {
        "run": str(run),
        "which": checkpoint["which"],
        "epoch": checkpoint["epoch"],
        "images": opened.val.samples,
        "data": {"source": opened.data.source, "fingerprint": opened.data.fingerprint},
        "same_data": then == opened.data.fingerprint if then else None,
        "device": str(opened.process.device),
        "changed": [word for word in words if word.partition("=")[0] not in NEUTRAL],
    }


def eval_command() -> None:
    """``attnbench eval RUN [key=value ...] [--which last|best] [--json]``."""
    parser = Words(prog="attnbench eval", description="A run's weights over its validation split.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument("options", nargs="*", metavar="key=value", help="dataset.root=DIR, runtime.device=cpu")
    parser.add_argument("--which", choices=get_args(Which), default="last", help="weights of which epoch")
    parser.add_argument("--json", action="store_true", help="as data")
    taken = parser.taken()
    found = evaluate(taken.run, taken.which, taken.options)
    if taken.json:
        print(json.dumps({key: None if value != value else value for key, value in found.items()}, indent=2))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, title=f"{found['which']} weights, after epoch {found['epoch']}")
    for name, value in found.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.3f}" if math.isfinite(value) else str(value))
    table.add_row("images", f"{found['images']:,}")
    table.add_row("data", found["data"]["source"])
    said = []
    if found["same_data"] is False:
        said.append("these are not the data that the run was trained and evaluated on")
    if found["changed"]:
        said.append(f"CHANGED PROTOCOL: {', '.join(found['changed'])}; not as the run evaluates")
    printing.show(table, *said)
