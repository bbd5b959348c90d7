"""Image folders as data sets: ImageNet-1k (Russakovsky et al., arXiv:1409.0575), and a user's own pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attnbench.base.errors import ConfigError, DataError
from attnbench.config.options import Count, DataName, Index, Part, Several, Share, checked
from attnbench.data.dataset import CHANGED, Dataset
from attnbench.data.image_folders import parquet
from attnbench.data.image_folders.division import Division, division
from attnbench.data.image_folders.folder import Side, fingerprint
from attnbench.data.image_folders.own import VALIDATION, counts, lacking, read_own
from attnbench.data.image_folders.shards import Shards, are_here, open_shards
from attnbench.data.images.crops import Crops
from attnbench.data.images.files import Chosen, Files, Loose, Records
from attnbench.data.images.formats import Facts
from attnbench.data.images.suffixes import FORMAT_OF, SUFFIXES, Formats
from attnbench.data.images.survey import Survey, Turn, survey

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@checked
def imagenet(
    *,
    root: str,
    size: Count = 224,
    resize: Count = 256,
    resize_mode: Literal["shorter", "square"] = "shorter",
    min_area: Share = 0.08,
    name: DataName | None = None,
    formats: Formats = "jpeg_png",
    orientation: Literal["upright", "stored"] = "stored",
    labels: str | None = None,
) -> Dataset:
    """Images from ``root/train/<wnid>/`` and ``root/val/<wnid>/``, or from shards, decoded as they are used.

    Args:
        root: the folder that holds ``train/`` and ``val/``, or the shards that ``attnbench data shard`` made from
            such a folder, or Hugging Face's parquet files. Classes are the sorted folders of ``train/``.
        size: side in pixels of the crop that the network gets.
        resize: pixels to which a validation image is resized before its centre is cropped.
        resize_mode: ``shorter`` resizes the shorter side and keeps the aspect ratio; ``square`` resizes both sides.
        min_area: smallest fraction of an image's area that a training crop covers.
        name: the name of the data if they are not ImageNet itself; part of a run's name.
        formats: whether to read only JPEG and PNG, as ImageNet's, or all formats that ``folder`` reads.
        orientation: whether an orientation in the EXIF data is applied. With ImageNet, nobody applies it.
        labels: a list of labels below ``root``, for a ``val/`` without class folders; None for lists with known names.

    Raises:
        DataError: a folder is missing or empty, validation has a class that training does not have, or shards are
            unfinished or damaged.
        ConfigError: ``resize`` is less than ``size``.
    """
    crops = Crops(size, _at_least(size, resize), resize_mode, min_area)
    base, upright = Path(root).expanduser(), orientation == "upright"
    if are_here(base):
        return _named(name, _sharded(base, crops, formats, upright))
    if parquet.are_here(base):
        return _named(name, _parquet(base, crops, None, upright))
    sides = read_own(base, formats, None, labels, ("val",))
    records = Loose(sides.train), Loose(sides.val)
    return _named(name, _dataset(sides.classes, (sides.train, sides.val), records, crops, upright, notes=sides.notes))


@checked
def folder(
    *,
    root: str,
    name: DataName | None = None,
    size: Count = 224,
    resize: Count = 256,
    resize_mode: Literal["shorter", "square"] = "shorter",
    min_area: Share = 0.08,
    formats: Formats = "all",
    orientation: Literal["upright", "stored"] = "upright",
    holdout: Part | None = None,
    fold: Index | None = None,
    folds: Several = 5,
    division_seed: int = 0,
    labels: str | None = None,
    sampling: Literal["plain", "balanced"] = "plain",
) -> Dataset:
    """A user's own pictures, read as ``imagenet`` reads its images.

    They are in ``root/train/<class>/`` and ``root/val/<class>/`` (or ``valid/``, ``validation/``, and ``test/`` if
    there is none of these), or in one folder ``root/<class>/``, of which a part is held out. Or they are in shards, or
    in Hugging Face's parquet files.

    Args:
        name: the name of the data, part of a run's name. If none is given, configurations use the folder's name.
        formats: all formats, or only JPEG and PNG.
        orientation: whether an orientation in the EXIF data is applied.
        holdout: the share of each class that is held out for validation, from ``train/`` or from one folder.
        fold: the one of ``folds`` folds that is held out for validation, from 0, in place of a share.
        folds: the number of folds.
        division_seed: another one gives another division. It does not depend on the run's seed.
        labels: a list of labels below ``root``, for a ``val/`` without class folders; None for lists with known names.
        sampling: how an epoch draws training pictures: ``plain`` takes each once; ``balanced`` takes as many, and of
            each class equally many.

    Raises:
        DataError: as in ``imagenet``; or a class has too few pictures to divide.
        ConfigError: as in ``imagenet``; or options of the division that do not fit together.
    """
    crops = Crops(size, _at_least(size, resize), resize_mode, min_area)
    divided = division(holdout, fold, folds, division_seed)
    base, upright = Path(root).expanduser(), orientation == "upright"
    if are_here(base):
        if divided:
            raise ConfigError(
                "shards have train/ and val/ already", "dataset", "remove dataset.holdout and dataset.fold"
            )
        data = _sharded(base, crops, formats, upright)
    elif parquet.are_here(base):
        data = _parquet(base, crops, divided, upright)
    else:
        sides = read_own(base, formats, divided, labels, VALIDATION)
        both, records = (sides.train, sides.val), (Loose(sides.train), Loose(sides.val))
        data = _dataset(sides.classes, both, records, crops, upright, how=sides.how, notes=sides.notes)
    return _named(name, replace(data, balanced=_labels(data)) if sampling == "balanced" else data)


def _labels(data: Dataset) -> Tensor:
    assert isinstance(data.train, Files)
    return torch.from_numpy(data.train.records.labels)


def _at_least(size: int, resize: int) -> int:
    if resize < size:
        what = f"resize={resize} is less than size={size}"
        raise ConfigError(what, "dataset.resize", f"use at least {size}")
    return resize


def _named(name: str | None, dataset: Dataset) -> Dataset:
    return replace(dataset, source=f"{name}: {dataset.source}") if name else dataset


def _sharded(root: Path, crops: Crops, formats: Formats, upright: bool) -> Dataset:
    """The data set in a folder of shards."""
    found = open_shards(root)
    sides = found.train.side, found.val.side
    unread = tuple(set(FORMAT_OF) - set(SUFFIXES[formats]))
    other = (file for side in sides for file in side.files if file.lower().endswith(unread))
    if file := next(other, None):
        todo = "use dataset.formats=all, or dataset=folder"
        raise DataError(f"these shards hold other formats than JPEG and PNG, such as {file}", root, todo)
    records = Shards(found.train), Shards(found.val)
    return _dataset(found.classes, sides, records, crops, upright, changed=found.changed)


def _parquet(root: Path, crops: Crops, divided: Division | None, upright: bool) -> Dataset:
    """The data set in a folder of parquet files: with a split for validation, or divided."""
    found = parquet.open_parquet(root)
    notes = list(found.notes)
    if divided:
        only = next(iter(found.tables.values())) if len(found.tables) == 1 else None
        tables = [found.tables.get("train") or only or found.both(root)[0]]
        whole, sides = parquet.Parquet(tables[0]), divided.apply(tables[0].side, found.classes)
        records: tuple[Records, Records] = (_chosen(whole, sides[0]), _chosen(whole, sides[1]))
        unread = [name for name in found.tables if found.tables[name] is not tables[0]]
        notes += [f"{name} is not read: validation pictures are held out from train" for name in unread]
    else:
        tables = list(found.both(root))
        sides = tables[0].side, replace(tables[1].side, part="val")
        records = parquet.Parquet(tables[0]), parquet.Parquet(tables[1])
        notes += ["validation is test: there is no other"] if tables[1].side.name == "test" else []
    notes += [counts("training", sides[0], found.classes), counts("validation", sides[1], found.classes)]
    notes += filter(None, [lacking(sides[1], found.classes)])
    data = _dataset(found.classes, sides, records, crops, upright, how=str(divided or ""), notes=notes)
    source = data.source.replace("image folder", "parquet files", 1)
    return replace(data, source=source, fingerprint=parquet.fingerprint(tables, sides))


def _chosen(whole: parquet.Parquet, side: Side) -> Records:
    assert side.places is not None
    numbers = np.array([int(place.removeprefix("row ")) for place in side.places], np.int64)
    return Chosen(whole, numbers, np.array(side.labels, np.int64))


def _dataset(
    classes: tuple[str, ...],
    sides: tuple[Side, Side],
    records: tuple[Records, Records],
    crops: Crops,
    upright: bool,
    *,
    changed: str = "",
    how: str = "",
    notes: list[str] | None = None,
) -> Dataset:
    numbers = " + ".join(str(len(side.files)) for side in sides)
    parts = [f"image folder of {len(classes)} classes, {numbers} images", how, f"{CHANGED}{changed}" if changed else ""]
    surveyed = cache(partial(_surveyed, sides, records, upright))
    return Dataset(
        classes=classes,
        train=Files(records[0], crops, upright),
        val=Files(records[1], crops, upright),
        size=crops.size,
        mean=MEAN,
        std=STD,
        source="; ".join(filter(None, parts)),
        fingerprint=fingerprint(*sides, changed=changed),
        contents=lambda: surveyed().contents,
        drawn=lambda: surveyed().drawn(),
        notes=lambda: [*(notes or []), *surveyed().notes()],
    )


def _surveyed(sides: tuple[Side, Side], records: tuple[Records, Records], upright: bool) -> Survey:
    """See ``Dataset.contents``. Shards of unchanged images give the same hash as the folder that they came from."""
    first = len(sides[0].files)

    def of(number: int) -> tuple[Records, int]:
        return (records[0], number) if number < first else (records[1], number - first)

    def read(number: int) -> bytes:
        side, own = of(number)
        return side.read(own)

    def where(number: int) -> str:
        side, own = of(number)
        return side.where(own)

    def turn(number: int, data: bytes, about: Facts) -> Turn:
        return "turned" if upright else "stored"

    return survey([*sides[0].bytes, *sides[1].bytes], read, where, turn)
