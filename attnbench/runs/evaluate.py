"""Evaluates a run's weights again, on its validation split or on other data."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.base.errors import StorageError, listed
from attnbench.config import stored
from attnbench.config.naming import NEUTRAL
from attnbench.data.dataset import Dataset
from attnbench.data.matching import STRICT, Matching
from attnbench.data.record import DataRecord, from_dict
from attnbench.models.checkpoint import Which
from attnbench.models.folding import folded
from attnbench.runs import predictions
from attnbench.runs.elsewhere import evaluation_data
from attnbench.runs.load import Ready, Trained, class_names, load_run, ready
from attnbench.runs.predictions import Predictions
from attnbench.runs.results import read
from attnbench.training import engine
from attnbench.training.metrics.answers import Answers, calibration_error

log = logging.getLogger("attnbench")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run.

    Attributes:
        found: the metrics and what was evaluated; see ``evaluate``.
        predictions: what was predicted for each picture; None for a task of a user's own that does not tell.
        data: the data; None if they cannot be opened.
    """

    found: dict[str, Any]
    predictions: Predictions | None
    data: Dataset | None


class Restricted(nn.Module):
    """A classifier that chooses among some of its classes.

    Args:
        answers: their positions.
    """

    def __init__(self, network: nn.Module, answers: Sequence[int]) -> None:
        super().__init__()
        self.network, self.answers = network, list(answers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, answers)."""
        return self.network(images)[:, self.answers]


def evaluate(
    run: Path, which: Which = "last", overrides: Sequence[str] = (), matching: Matching = STRICT
) -> dict[str, Any]:
    """The task's metrics of a run's weights.

    Args:
        overrides: options of dataset or runtime that differ from the training, such as ``dataset.root=DIR``.
        matching: how the classes of the data are matched with the run's: always by name.

    Returns:
        The metrics (``top1`` and ``top5`` in percent; ``ece``, the calibration error in percent), and what was
        evaluated: ``run``, ``which``, ``epoch``, ``images``, ``evaluated`` (a sentence), ``data``, ``device``;
        ``sets``, top-1 by folder where pictures lie in folders above those of their classes, as in ImageNet-C;
        ``same_data``, whether the data are those of the training (None if the run has no result); and ``changed``, the
        overrides that change the protocol.

    Raises:
        Failure: the run, its weights, the data or the device cannot be found or used.
    """
    return evaluated(run, which, overrides, matching).found


def evaluated(
    run: Path, which: Which = "last", overrides: Sequence[str] = (), matching: Matching = STRICT
) -> Evaluation:
    """Evaluate a run's weights; see ``evaluate``. A finished run without saved predictions gets them."""
    trained = load_run(run, which).with_overrides(overrides)
    with ready(trained, matching) as opened:
        metrics, answers = measured(trained, opened)
        about = _about(run, trained, opened, overrides)
    told = None
    if answers is not None:
        told = Predictions(predictions.image_names(opened.data.val), list(opened.data.classes), answers)
    measures = _measures(told)
    if told and which == "last" and about["same_data"] and not about["changed"]:
        _keep(run, told)
    return Evaluation({**metrics, **measures, **about}, told, opened.data)


@torch.no_grad()
def measured(trained: Trained, opened: Ready) -> tuple[dict[str, float], Any]:
    """The metrics over the whole validation split, and the answers; each sample counts once."""
    task = trained.config.build("task", class_names=opened.data.classes)
    network = folded(opened.model, opened.process.reduced)
    if opened.matched.answers is not None:
        network = Restricted(network, opened.matched.answers)
    with opened.process.autocast():
        metrics: dict[str, float] = task.evaluate(network, opened.batches("evaluating"), opened.process)
    return metrics, engine.last_answers(task, opened.val, opened.process, dict)


def saved(run: Path) -> Evaluation | None:
    """The evaluation at the end of a run, from its saved predictions; None if it has none.

    Raises:
        StorageError: the predictions are damaged, or do not give the accuracy in result.json.
    """
    one = read(run)
    told = predictions.read(run, class_names(run)) if one.result else None
    if told is None:
        return None
    if isinstance(told.answers, Answers):
        _refuse_other_result(run, told.answers, one.result)
    measures = {key: value for key, value in one.result.items() if key in ("top1", "top5", "mAP", "mAP_area")}
    measures |= {key: value for key, value in one.result.items() if key.removeprefix("mask_").startswith("AP")}
    data = one.result.get("data", {})
    about: dict[str, Any] = {
        "run": str(run),
        "which": "last",
        "epoch": one.result.get("epochs"),
        "images": len(told.images),
        "evaluated": f"{len(told.images):,} pictures, as predicted when the run ended ({predictions.NAME})",
        "data": {key: data.get(key) for key in ("source", "fingerprint")},
        "same_data": True,
        "device": one.environment.get("device"),
        "changed": [],
    }
    return Evaluation({**measures, **_measures(told), **about}, told, None)


def data_of(run: Path) -> Dataset:
    """The data of a run, for its pictures.

    Raises:
        StorageError: the configuration of the run cannot be read.
        DataError: the data cannot be opened.
    """
    return evaluation_data(stored.checked(stored.read(run), run / "config.yaml"), moved=False)


def _refuse_other_result(run: Path, answers: Answers, result: dict[str, Any]) -> None:
    """Refuse saved predictions that do not give the accuracy that the run reports."""
    top1 = result.get("top1")
    if isinstance(top1, float) and not math.isclose(answers.accuracy(), top1, abs_tol=1e-6):
        what = f"the saved predictions give top-1 {answers.accuracy():.3f}, result.json {top1:.3f}"
        raise StorageError(what, run / predictions.NAME, predictions.AGAIN)


def _measures(told: Predictions | None) -> dict[str, Any]:
    """Measures of saved predictions that a run does not report itself."""
    if told is None or not isinstance(told.answers, Answers):
        return {}
    sets = _sets(told, told.answers)
    return {"ece": calibration_error(told.answers)} | ({"sets": sets} if sets else {})


def _sets(told: Predictions, answers: Answers) -> dict[str, float]:
    """Top-1 in percent by folder, where pictures lie in folders above those of their classes."""
    groups: dict[str, list[bool]] = {}
    for number, right in zip(answers.samples, answers.right, strict=True):
        groups.setdefault("/".join(told.images[number].split("/")[:-2]), []).append(bool(right))
    return {name: 100 * sum(group) / len(group) for name, group in sorted(groups.items())} if set(groups) - {""} else {}


def _keep(run: Path, told: Predictions) -> None:
    """Write the predictions of a run that has none; a folder that cannot be written is no reason to fail."""
    if (run / predictions.NAME).exists():
        return
    try:
        log.info("written: %s", predictions.write(run, told))
    except StorageError as error:
        log.warning("the predictions are not kept: %s", error)


def _about(run: Path, trained: Trained, opened: Ready, overrides: Sequence[str]) -> dict[str, Any]:
    checkpoint, result = trained.about["checkpoint"], trained.about["result"] or {}
    then = from_dict(result.get("data"))
    now = DataRecord(opened.data.source, opened.data.fingerprint)
    return {
        "run": str(run),
        "which": checkpoint["which"],
        "epoch": checkpoint["epoch"],
        "images": opened.val.samples,
        "evaluated": _sentence(trained, opened),
        "data": {"source": opened.data.source, "fingerprint": opened.data.fingerprint},
        "same_data": not then.difference(now) if then else None,
        "device": str(opened.process.device),
        "changed": [override for override in overrides if override.partition("=")[0] not in NEUTRAL],
    }


def _sentence(trained: Trained, opened: Ready) -> str:
    """What was evaluated, in a line."""
    found, all_classes = opened.matched, len(trained.classes)
    covered = all_classes - len(found.lacking)
    text = f"{opened.val.samples:,} pictures of "
    if found.lacking:
        text += f"{covered:,} of the run's {all_classes:,} classes, without {listed(found.lacking)}"
    else:
        text += f"the run's {all_classes:,} classes"
    if found.answers is not None:
        text += f"; the network chooses among these {covered:,}"
    if found.others:
        text += f"; left out: {len(found.others):,} other classes of the data, {listed(found.others)}"
    return text
