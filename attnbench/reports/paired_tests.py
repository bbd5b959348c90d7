"""Tests of two settings on the same pictures, one pair of runs for each seed that both have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from attnbench.base import console
from attnbench.base.errors import ConfigError, DataError, StorageError
from attnbench.data.record import from_dict
from attnbench.reports.statistics import mcnemar, resampled
from attnbench.runs import predictions
from attnbench.runs.load import class_names
from attnbench.runs.predictions import Predictions
from attnbench.runs.results import Run
from attnbench.training.metrics.answers import Answers
from attnbench.training.metrics.detections import Found
from attnbench.training.metrics.weighted_ap import METRICS, WeightedAP

Kind = Literal["mcnemar", "bootstrap"]
RESAMPLES = 1000
AP_METRICS = (*METRICS, *(f"mask_{name}" for name in METRICS))


@dataclass(frozen=True)
class PairedTests:
    """The results of a test.

    Attributes:
        title: what was tested.
        columns: the table's columns.
        rows: a row for each seed.
        notes: seeds that were left out.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    notes: list[str]


def paired_tests(runs: Sequence[Run], kind: Kind, metric: str | None, resamples: int = RESAMPLES) -> PairedTests:
    """Compare two settings picture by picture.

    Args:
        runs: the runs of two settings, the first setting's first.
        kind: ``mcnemar``, the exact test of two classifiers, or ``bootstrap``, the interval of a difference if the
            pictures are drawn again.
        metric: ``top1`` for classifiers; ``AP``, ``AP50``, ``AP75`` or, of masks, ``mask_AP`` and so on.

    Raises:
        ConfigError: the runs are not two settings with a common seed, or the metric does not fit the test.
        DataError: two runs were evaluated on different data.
        StorageError: a run has no saved predictions, or they are damaged.
    """
    first, second = _settings(runs)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        have = (", ".join(map(str, sorted(of))) for of in (first, second))
        what = "the two settings share no seed: {} and {}".format(*have)
        raise ConfigError(what, "--test", "give two runs of one seed")
    pairs = [(seed, _pair(first[seed], second[seed])) for seed in seeds]
    classified = isinstance(pairs[0][1][0].answers, Answers)
    metric = metric or ("top1" if classified else "AP")
    _refuse_other_metric(metric, kind, classified)
    notes = [f"seed {seed} is left out: only one of the two has it" for seed in sorted(first.keys() ^ second.keys())]
    title = f"A {_name(first[seeds[0]])} | B {_name(second[seeds[0]])}"
    if kind == "mcnemar":
        columns = ["seed", "pictures", "top1_A", "top1_B", "A-B", "both_right", "only_A", "only_B", "both_wrong", "p"]
        return PairedTests(f"exact McNemar test: {title}", columns, [[s, *_mcnemar(*pair)] for s, pair in pairs], notes)
    columns = ["seed", "pictures", f"{metric}_A", f"{metric}_B", "A-B", "low", "high", "p"]
    rows = [[seed, *_bootstrap(*pair, metric, resamples)] for seed, pair in pairs]
    what = f"paired bootstrap of {metric} over pictures, {resamples:,} resamples, 95 % interval: {title}"
    return PairedTests(what, columns, rows, notes)


def _settings(runs: Sequence[Run]) -> tuple[dict[int, Run], dict[int, Run]]:
    """The runs of each of two settings, by seed."""
    settings: dict[Any, dict[int, Run]] = {}
    for run in runs:
        if not run.result:
            raise DataError(f"this run has no result: {run.state}", run.folder, "finish it")
        settings.setdefault(run.identity, {})[run.seed] = run
    if len(settings) != 2:
        what = f"a paired test compares two settings, and these runs have {len(settings)}"
        raise ConfigError(what, "--test", "give two runs of one seed, or the folders of two settings")
    first, second = settings.values()
    return first, second


def _pair(ours: Run, theirs: Run) -> tuple[Predictions, Predictions]:
    """The saved predictions of two runs on the same pictures."""
    records = [from_dict(run.result.get("data")) for run in (ours, theirs)]
    where = f"{ours.folder} and {theirs.folder}"
    if records[0] and records[1] and (difference := records[0].difference(records[1])):
        raise DataError(f"these runs were evaluated on different data: {difference}", where)
    one, other = _read(ours), _read(theirs)
    if type(one.answers) is not type(other.answers) or one.images != other.images or not _same_truth(one, other):
        raise DataError("these runs were evaluated on different data: other pictures or labels", where)
    return one, other


def _read(run: Run) -> Predictions:
    found = predictions.read(run.folder, class_names(run.folder))
    if found is None:
        raise StorageError(f"no {predictions.NAME}", run.folder, f"attnbench eval {run.folder} writes it")
    return found


def _same_truth(one: Predictions, other: Predictions) -> bool:
    ours, theirs = one.answers, other.answers
    if isinstance(ours, Answers) and isinstance(theirs, Answers):
        return [one.classes[label] for label in ours.labels] == [other.classes[label] for label in theirs.labels]
    assert not isinstance(ours, Answers) and not isinstance(theirs, Answers)
    return all(
        np.array_equal(a.true_labels, b.true_labels) and np.array_equal(a.true_boxes, b.true_boxes)
        for a, b in zip(ours, theirs, strict=True)
    )


def _refuse_other_metric(metric: str, kind: Kind, classified: bool) -> None:
    if kind == "mcnemar" and not classified:
        raise ConfigError("McNemar's test is for classifiers", "--test", "use --test bootstrap for detectors")
    known = ("top1",) if classified else AP_METRICS
    if metric not in known:
        raise ConfigError(f"no paired test of {metric}", "--metric", f"use {', '.join(known)}")


def _name(run: Run) -> str:
    return "/".join(run.folder.parts[-4:-1]) or str(run.folder)


def _mcnemar(one: Predictions, other: Predictions) -> list[Any]:
    ours, theirs = one.answers, other.answers
    assert isinstance(ours, Answers) and isinstance(theirs, Answers)
    a, b = ours.right, theirs.right
    counts = [int(part.sum()) for part in (a & b, a & ~b, ~a & b, ~a & ~b)]
    top1 = [ours.accuracy(), theirs.accuracy()]
    return [len(ours), *top1, top1[0] - top1[1], *counts, mcnemar(counts[1], counts[2])]


def _bootstrap(one: Predictions, other: Predictions, metric: str, resamples: int) -> list[Any]:
    measures = [_measure(told, metric) for told in (one, other)]
    pictures = len(one.images)
    slow = metric != "top1"
    with console.counting(resamples, "resamples", "drawing") if slow else nullcontext(int) as advance:
        found = resampled(lambda weights: measures[0](weights) - measures[1](weights), pictures, resamples, advance)
    whole = np.ones(pictures, dtype=np.int64)
    return [pictures, *(measure(whole) for measure in measures), found.mean, found.low, found.high, found.p]


def _measure(told: Predictions, metric: str) -> Any:
    """The metric in percent as a function of how often each picture is there."""
    answers = told.answers
    if isinstance(answers, Answers):
        right = answers.right
        return lambda weights: 100 * float((right * weights).sum() / weights.sum())
    _refuse_unmasked(answers, metric)
    return WeightedAP(answers, len(told.classes), metric)


def _refuse_unmasked(images: Sequence[Found], metric: str) -> None:
    if metric.startswith("mask_") and any(image.masks is None for image in images):
        raise ConfigError("these runs have no masks", "--metric", f"use {', '.join(METRICS)}")
