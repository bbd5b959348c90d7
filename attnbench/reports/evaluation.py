"""An evaluation in detail: accuracy or AP by class, a confusion matrix, calibration, the most wrong pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from attnbench.base import escape, files
from attnbench.base.contact_sheet import Tile, sheet
from attnbench.base.errors import DataError
from attnbench.data.dataset import Dataset
from attnbench.reports import writing
from attnbench.reports.figures.canvas import canvas
from attnbench.reports.figures.saving import png
from attnbench.runs.evaluate import Evaluation
from attnbench.runs.predictions import Predictions, image_names
from attnbench.training.metrics import answers as of_answers
from attnbench.training.metrics.answers import Answers
from attnbench.training.metrics.coco_ap import ap_by_class
from attnbench.training.metrics.detections import Found
from attnbench.training.metrics.voc_ap import by_class as voc_by_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOC = ["voc_AP", "voc_AP_area"]
WRONG = 36  # pictures on the sheet of the most wrong ones
NAMED, NUMBERED = 60, 20  # maximum number of classes whose names, or counts, are on a confusion matrix
RED = (180, 30, 30)


@dataclass(frozen=True)
class ClassTable:
    """A table with a row for each class; cells without a value are None."""

    columns: list[str]
    rows: list[list[Any]]


def class_table(told: Predictions, found: Mapping[str, Any]) -> ClassTable:
    """Accuracy and precision, or the average precisions, of each class in percent.

    Args:
        found: the measures of all classes; with VOC's ``mAP`` among them, classes get VOC's average precisions too.
    """
    if isinstance(told.answers, Answers):
        rows = [list(one) for one in of_answers.by_class(told.answers, told.classes)]
        return ClassTable(["class", "pictures", "accuracy", "answers", "precision", "most_confused_with"], rows)
    return _detected(told.answers, told.classes, voc="mAP" in found)


def _detected(images: Sequence[Found], classes: Sequence[str], voc: bool) -> ClassTable:
    parts = [ap_by_class(images, len(classes))]
    if all(image.masks is not None for image in images):
        parts.append(ap_by_class(images, len(classes), masks=True))
    names = [f"{prefix}{name}" for prefix in ("", "mask_")[: len(parts)] for name in ("AP", "AP50", "AP75")]
    if voc:
        parts.append(voc_by_class(images, len(classes)))
        names += VOC
    rows = []
    for number, name in enumerate(classes):
        measures = {key: value for part in parts for key, value in part[number].items()}
        objects = sum(int((image.true_labels == number + 1).sum()) for image in images)
        found = sum(int((image.labels == number + 1).sum()) for image in images)
        rows.append([name, objects, found, *(measures.get(key) for key in names)])
    return ClassTable(["class", "objects", "detections", *names], rows)


def write(evaluation: Evaluation, folder: Path, data: Dataset | None) -> list[Path]:
    """Write an evaluation's tables and pictures into a folder.

    Args:
        data: the data, for the most wrong pictures; None to leave them out.

    Returns:
        The files: ``classes.csv``; of a classifier also ``confusion.csv``, ``confusion.png``, ``calibration.csv``,
        ``most_wrong.csv`` and, with data, ``most_wrong.png``.

    Raises:
        StorageError: a file cannot be written.
        DataError: a picture cannot be read.
    """
    told = evaluation.predictions
    assert told is not None
    files.make_folder(folder)
    table = class_table(told, evaluation.found)
    contents = {"classes.csv": _csv([table.columns, *table.rows])}
    if isinstance(told.answers, Answers):
        contents |= _of_classifier(told, told.answers, evaluation.found, data)
    for name, content in contents.items():
        files.write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return [folder / name for name in contents]


def _of_classifier(
    told: Predictions, answers: Answers, found: dict[str, Any], data: Dataset | None
) -> dict[str, bytes]:
    counts = of_answers.confusion(answers, len(told.classes))
    bins = of_answers.calibration(answers)
    wrong = of_answers.most_wrong(answers, WRONG)
    return {
        "confusion.csv": _csv([["class", *told.classes], *([name, *row] for name, row in _rows(told, counts))]),
        "confusion.png": png(_confusion_picture(told.classes, counts, _title(found))),
        "calibration.csv": _csv([bins[0]._fields, *bins]),
        "most_wrong.csv": _csv([_WRONG, *(_wrong_row(told, answers, at) for at in wrong)]),
    } | ({"most_wrong.png": _as_png(_wrong_sheet(told, answers, wrong, data))} if data and len(wrong) else {})


_WRONG = ("image", "label", "prediction", "confidence", "label_confidence")


def _wrong_row(told: Predictions, answers: Answers, at: int) -> list[Any]:
    names = [told.classes[of[at]] for of in (answers.labels, answers.predictions)]
    image = told.images[int(answers.samples[at])]
    return [image, *names, str(answers.confidences[at]), str(answers.label_confidences[at])]


def _rows(told: Predictions, counts: np.ndarray) -> Iterable[tuple[str, list[int]]]:
    return zip(told.classes, counts.tolist(), strict=True)


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    return writing.csv_lines(rows).encode()


def _title(found: dict[str, Any]) -> str:
    return f"Top-1 {found['top1']:.2f} %, {found['evaluated']}" if "top1" in found else str(found["evaluated"])


def _confusion_picture(classes: Sequence[str], counts: np.ndarray, title: str) -> Figure:
    """The matrix with each row as shares of the class's pictures; classes without pictures are white."""
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    side = min(11.0, max(4.0, 0.32 * len(classes)))
    picture, ((axes,),) = canvas(1, 1, (side + 1, side), title)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    picture.colorbar(image, ax=axes, shrink=0.7, label="share of the class's pictures")
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    if len(classes) <= NAMED:
        short = [name if len(name) <= 24 else f"{name[:23]}…" for name in map(escape.visible, classes)]
        axes.set_xticks(range(len(classes)), short, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), short, fontsize=7)
    if len(classes) <= NUMBERED:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=colour)
    return picture


def _wrong_sheet(told: Predictions, answers: Answers, wrong: np.ndarray, data: Dataset) -> Image.Image:
    names = image_names(data.val)
    tiles = []
    for at in wrong:
        sample = int(answers.samples[at])
        if names[sample : sample + 1] != [told.images[sample]]:
            what = f"{told.images[sample]} is not where it was"
            raise DataError(what, data.source, "give the data of the evaluation")
        label, answer = (told.classes[of[at]] for of in (answers.labels, answers.predictions))
        lines = (f"{100 * answers.confidences[at]:.1f} %: {answer}", f"is: {label}", told.images[sample].split("/")[-1])
        tiles.append(Tile(_crop(data, sample), lines, RED))
    return sheet(tiles)


def _crop(data: Dataset, sample: int) -> Image.Image:
    """A picture as the network got it."""
    ((images, _),) = data.val.to("cpu").batches([torch.tensor([sample])], None, workers=0, timeout=0)
    return Image.fromarray(np.ascontiguousarray(images[0].permute(1, 2, 0).numpy()))


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
