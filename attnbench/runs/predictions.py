"""The predictions of a run for each picture, as ``predictions.csv`` in its folder; outputs/README.md lists the columns.

Numbers are written with as many digits as float32 needs, so everything that is measured from the file equals what the
run measured. The file is written once, when a run ends, before result.json.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.base import files
from attnbench.base.errors import StorageError
from attnbench.data.dataset import Split
from attnbench.training.metrics.answers import Answers
from attnbench.training.metrics.detections import Found

NAME = "predictions.csv"
CLASSIFIED = ("sample", "image", "label", "prediction", "confidence", "label_confidence", "rank")
DETECTED = (
    *("sample", "image", "kind", "class", "score", "left", "top", "right", "bottom"),
    *("area", "difficult", "crowd", "mask"),
)
AGAIN = "remove it: attnbench eval RUN writes it again"


@dataclass(frozen=True)
class Predictions:
    """What a run predicted for each picture.

    Attributes:
        images: the pictures' names, in the order of the data set.
        classes: the possible answers.
        answers: a classifier's answers, or what a detector found in each picture.
    """

    images: list[str]
    classes: list[str]
    answers: Answers | list[Found]


def image_names(split: Split) -> list[str]:
    """The name of each sample: ``class/file`` or the file's name; its number if it has no name."""
    named: Callable[[int], str] | None = getattr(split, "name", None)
    return [(named(number) if named else "") or str(number) for number in range(len(split))]


def write(folder: Path, predictions: Predictions) -> Path:
    """Write the predictions into a folder, completely or not at all; equal predictions give equal bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    answers = predictions.answers
    columns = CLASSIFIED if isinstance(answers, Answers) else DETECTED
    rows = _classified(predictions, answers) if isinstance(answers, Answers) else _detected(predictions, answers)
    path = folder / NAME
    files.write(path, lambda file: _fill(file, columns, rows))
    return path


def _fill(file: Any, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    text.flush()
    text.detach()


def _classified(predictions: Predictions, answers: Answers) -> Iterator[Sequence[object]]:
    names, classes = predictions.images, predictions.classes
    each = zip(answers.samples, answers.labels, answers.predictions, strict=True)
    shares = zip(answers.confidences, answers.label_confidences, answers.ranks, strict=True)
    for (sample, label, prediction), (best, of_label, rank) in zip(each, shares, strict=True):
        shown = (classes[prediction], str(best), str(of_label)) if rank else ("", "", "")
        yield sample, names[sample], classes[label], *shown, rank


def _detected(predictions: Predictions, images: Sequence[Found]) -> Iterator[Sequence[object]]:
    for found in images:
        start = (found.image, predictions.images[found.image])
        yield *start, "picture", *[""] * (len(DETECTED) - 4), "-" if found.masks is None else ""
        for n, label in enumerate(found.true_labels):
            flags = (int(found.difficult[n]), int(found.crowd[n]))
            about = (*_numbers(found.true_boxes[n]), *_numbers(found.areas[n : n + 1]), *flags)
            yield *start, "object", predictions.classes[label - 1], "", *about, _mask(found.true_masks, n)
        for n, label in enumerate(found.labels):
            about = (*_numbers(found.scores[n : n + 1]), *_numbers(found.boxes[n]))
            yield *start, "detection", predictions.classes[label - 1], *about, "", "", "", _mask(found.masks, n)


def _numbers(values: np.ndarray) -> list[str]:
    return [str(np.float32(value)) for value in values]


def _mask(masks: Sequence[dict[str, Any]] | None, number: int) -> str:
    """A mask as ``HxW counts``, with COCO's compressed counts; ``-`` in a picture without masks."""
    if masks is None:
        return "-"
    (height, width), counts = masks[number]["size"], masks[number]["counts"]
    return f"{height}x{width} {counts.decode()}"


def read(folder: Path, classes: Sequence[str]) -> Predictions | None:
    """The predictions in a folder; None if there is no file.

    Args:
        classes: the names of the classes; the labels are positions among them.

    Raises:
        StorageError: the file cannot be read, is incomplete or has other columns or classes.
    """
    path = folder / NAME
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = list(csv.reader(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, csv.Error) as error:
        raise StorageError(f"the predictions cannot be read: {error}", path, AGAIN) from error
    number = {name: position for position, name in enumerate(classes)}
    try:
        if header == list(CLASSIFIED):
            return _read_classified(rows, list(classes), number)
        if header == list(DETECTED):
            return _read_detected(rows, list(classes), number)
    except (ValueError, KeyError, IndexError) as error:
        raise StorageError(f"the predictions are damaged or of other classes: {error}", path, AGAIN) from error
    raise StorageError(f"the predictions have other columns: {', '.join(header)}", path, AGAIN)


def _read_classified(rows: list[list[str]], classes: list[str], number: dict[str, int]) -> Predictions:
    samples, images, labels, told, best, of_label, ranks = (list(column) for column in zip(*rows, strict=True))

    def numbers(column: list[str]) -> np.ndarray:
        return np.array(column, dtype=np.int64)

    def floats(column: list[str]) -> np.ndarray:
        return np.array([value or "nan" for value in column], dtype=np.float32)

    def places(column: list[str]) -> np.ndarray:
        return np.array([number[name] if name else 0 for name in column], dtype=np.int64)

    answers = Answers(
        samples=numbers(samples),
        labels=places(labels),
        predictions=places(told),
        confidences=floats(best),
        label_confidences=floats(of_label),
        ranks=numbers(ranks),
    )
    return Predictions(images, classes, answers)


def _read_detected(rows: list[list[str]], classes: list[str], number: dict[str, int]) -> Predictions:
    images, found = [], []
    start = [position for position, row in enumerate(rows) if row[2] == "picture"]
    for first, end in zip(start, [*start[1:], len(rows)], strict=True):
        images.append(rows[first][1])
        found.append(_one_picture(rows[first], rows[first + 1 : end], number))
    return Predictions(images, classes, found)


def _one_picture(first: list[str], rows: list[list[str]], number: dict[str, int]) -> Found:
    objects = [row for row in rows if row[2] == "object"]
    detections = [row for row in rows if row[2] == "detection"]
    masked = first[12] != "-"

    def floats(some: list[list[str]], start: int, end: int) -> np.ndarray:
        return np.array([row[start:end] for row in some], dtype=np.float32).astype(np.float64).reshape(-1, end - start)

    def labels(some: list[list[str]]) -> np.ndarray:
        return np.array([number[row[3]] + 1 for row in some], dtype=np.int64)

    def flags(column: int) -> np.ndarray:
        return np.array([row[column] == "1" for row in objects], dtype=bool)

    return Found(
        image=int(first[0]),
        boxes=floats(detections, 5, 9),
        labels=labels(detections),
        scores=floats(detections, 4, 5)[:, 0],
        true_boxes=floats(objects, 5, 9),
        true_labels=labels(objects),
        areas=floats(objects, 9, 10)[:, 0],
        difficult=flags(10),
        crowd=flags(11),
        masks=[_read_mask(row[12]) for row in detections] if masked else None,
        true_masks=[_read_mask(row[12]) for row in objects] if masked else None,
    )


def _read_mask(text: str) -> dict[str, Any]:
    size, counts = text.split(" ", 1)
    return {"size": [int(side) for side in size.split("x")], "counts": counts.encode()}
