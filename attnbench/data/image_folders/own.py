"""A user's own pictures: the layouts in which they lie, and how they are divided into training and validation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.image_folders.division import Division
from attnbench.data.image_folders.folder import (
    Side,
    class_names,
    contents,
    has_classes,
    left_out_line,
    read_side,
    refuse_unknown,
    where_it_is,
)
from attnbench.data.image_folders.labels import read_flat
from attnbench.data.images.suffixes import Formats

TRAIN = "train"
VALIDATION = ("val", "valid", "validation", "test")  # the first that exists; test only if there is no other
LISTED = 12  # classes whose counts are listed one by one


@dataclass(frozen=True)
class Sides:
    """The pictures of both splits.

    Attributes:
        how: how they were divided, for the source line; empty for the folders train/ and val/.
        notes: lines for the start of a run.
    """

    classes: tuple[str, ...]
    train: Side
    val: Side
    how: str
    notes: list[str]


def read_own(
    root: Path, formats: Formats, division: Division | None, labels: str | None, names: tuple[str, ...] = VALIDATION
) -> Sides:
    """The pictures below ``root``, from ``train/`` and a validation folder, or divided by ``division``.

    Args:
        labels: a list of labels for a validation folder without class folders; None for those with known names.
        names: validation folders, the first that exists.

    Raises:
        DataError: a folder is missing, empty or has a class too many, or a list of labels does not fit.
    """
    notes: list[str] = []
    if division:
        folder = root / TRAIN if has_classes(root / TRAIN) else root
        classes = class_names(folder) if folder.is_dir() else ()
        todo = where_it_is(root)
        if folder == root and (not classes or set(classes) & set(VALIDATION) or "=" in todo):
            raise DataError(f"no class folders to divide here: {contents(root)}", root, todo)
        whole = read_side(folder, classes, classes, formats)
        train, val = division.apply(whole, classes)
        unread = [name for name in names if folder != root and (root / name).is_dir()]
        notes += [f"{name}/ is not read: validation pictures are held out from train/" for name in unread]
        left_out = whole.left_out
    else:
        train_folder, val_folder = _folders(root, names)
        classes = class_names(train_folder)
        train = read_side(train_folder, classes, classes, formats)
        val, listed = _val(val_folder, train_folder, classes, labels, formats)
        notes += [f"labels of {val_folder.name}/: {listed}"] if listed else []
        if val_folder.name == "test":
            notes.append("validation is test/: there is no val/")
        left_out = train.left_out + val.left_out
    notes += [counts("training", train, classes), counts("validation", val, classes)]
    notes += filter(None, [lacking(val, classes), left_out_line(left_out)])
    return Sides(classes, train, val, str(division or ""), notes)


def _folders(root: Path, names: tuple[str, ...]) -> tuple[Path, Path]:
    """The folders of both splits.

    Raises:
        DataError: one is missing; it says how a run can do without.
    """
    train = root / TRAIN
    val = next((root / name for name in names if (root / name).is_dir()), None)
    if train.is_dir() and val:
        return train, val
    wanted = f"{names[0]}/<class>/*.jpg" if train.is_dir() else "train/<class>/*.jpg"
    divide = "set dataset.holdout=0.2 or dataset.fold=0 to hold pictures out"
    todo = where_it_is(root)
    if other := next((name for name in VALIDATION if train.is_dir() and (root / name).is_dir()), ""):
        todo = f"use dataset=folder, which reads {other}/"
    elif train.is_dir() or (has_classes(root) and "=" not in todo and not any((root / n).is_dir() for n in VALIDATION)):
        todo = divide if len(names) > 1 else f"use dataset=folder, and {divide}"
    raise DataError(f"no {wanted} here: {contents(root)}", root, todo)


def _val(folder: Path, train: Path, classes: tuple[str, ...], labels: str | None, formats: Formats) -> tuple[Side, str]:
    """The validation pictures, and the list of their labels if they are not in class folders."""
    if not has_classes(folder):
        return read_flat(folder, classes, labels, formats)
    if labels:
        raise DataError(f"{folder.name}/ has class folders", folder, "set dataset.labels to null")
    found = class_names(folder)
    refuse_unknown(found, classes, train, folder)
    return read_side(folder, found, classes, formats), ""


def counts(what: str, side: Side, classes: tuple[str, ...]) -> str:
    """The pictures of each class, or of the smallest and the largest one if there are many."""
    number = Counter(side.labels)
    head = f"{what}: {len(side.files):,} pictures"
    if len(classes) <= LISTED:
        return f"{head}: " + ", ".join(f"{name} {number[label]:,}" for label, name in enumerate(classes))
    (most, largest), *_, (least, smallest) = number.most_common()
    return f"{head} of {len(number):,} classes, {smallest:,} ({classes[least]}) to {largest:,} ({classes[most]})"


def lacking(val: Side, classes: tuple[str, ...]) -> str:
    """The classes that have no validation picture; empty if there are none."""
    names = [name for label, name in enumerate(classes) if label not in set(val.labels)]
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return f"no validation picture of {', '.join(names[:LISTED])}{more}" if names else ""
