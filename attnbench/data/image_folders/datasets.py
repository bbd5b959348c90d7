"""Image folders as data sets: ImageNet-1k (Russakovsky et al., arXiv:1409.0575), and a user's own pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from attnbench.base.errors import ConfigError
from attnbench.config.options import Count, DataName, Share, checked
from attnbench.data.dataset import CHANGED, Dataset
from attnbench.data.image_folders.folder import Side, fingerprint, read_sides
from attnbench.data.image_folders.shards import Shards, are_here, open_shards
from attnbench.data.images.contents import digest
from attnbench.data.images.crops import Crops
from attnbench.data.images.files import Files, Loose, Records

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
) -> Dataset:
    """Images from ``root/train/<wnid>/`` and ``root/val/<wnid>/``, or from shards, decoded as they are used.

    Args:
        root: the folder that holds ``train/`` and ``val/``, or the shards that ``attnbench data shard`` made from
            such a folder. Classes are the sorted folders of ``train/``.
        size: side in pixels of the crop that the network gets.
        resize: pixels to which a validation image is resized before its centre is cropped.
        resize_mode: ``shorter`` resizes the shorter side and keeps the aspect ratio; ``square`` resizes both sides.
        min_area: smallest fraction of an image's area that a training crop covers.
        name: the name of the data if they are not ImageNet itself; part of a run's name.

    Raises:
        DataError: a folder is missing or empty, validation has a class that training does not have, or shards are
            unfinished or damaged.
        ConfigError: ``resize`` is less than ``size``.
    """
    return _image_folder(root, Crops(size, _at_least(size, resize), resize_mode, min_area), name)


@checked
def folder(
    *,
    root: str,
    name: DataName | None = None,
    size: Count = 224,
    resize: Count = 256,
    resize_mode: Literal["shorter", "square"] = "shorter",
    min_area: Share = 0.08,
) -> Dataset:
    """A user's own pictures from ``root/train/<class>/`` and ``root/val/<class>/``, read as ``imagenet`` reads them.

    Args:
        name: the name of the data, part of a run's name. If none is given, configurations use the folder's name.

    Raises:
        DataError: as in ``imagenet``.
        ConfigError: as in ``imagenet``.
    """
    return _image_folder(root, Crops(size, _at_least(size, resize), resize_mode, min_area), name)


def _at_least(size: int, resize: int) -> int:
    if resize < size:
        what = f"resize={resize} is less than size={size}"
        raise ConfigError(what, "dataset.resize", f"use at least {size}")
    return resize


def _image_folder(root: str, crops: Crops, name: str | None) -> Dataset:
    base = Path(root).expanduser()
    dataset = _sharded(base, crops) or _loose(base, crops)
    return replace(dataset, source=f"{name}: {dataset.source}") if name else dataset


def _sharded(root: Path, crops: Crops) -> Dataset | None:
    """The data set in a folder of shards; None if the folder holds no shards."""
    if not are_here(root):
        return None
    found = open_shards(root)
    records = Shards(found.train), Shards(found.val)
    return _dataset(found.classes, (found.train.side, found.val.side), records, crops, found.changed)


def _loose(root: Path, crops: Crops) -> Dataset:
    classes, train, val = read_sides(root, ("val",))
    return _dataset(classes, (train, val), (Loose(train), Loose(val)), crops, "")


def _dataset(
    classes: tuple[str, ...], sides: tuple[Side, Side], records: tuple[Records, Records], crops: Crops, changed: str
) -> Dataset:
    counts = " + ".join(str(len(side.files)) for side in sides)
    source = f"image folder of {len(classes)} classes, {counts} images"
    return Dataset(
        classes=classes,
        train=Files(records[0], crops),
        val=Files(records[1], crops),
        size=crops.size,
        mean=MEAN,
        std=STD,
        source=f"{source}; {CHANGED}{changed}" if changed else source,
        fingerprint=fingerprint(*sides, changed=changed),
        contents=cache(partial(_contents, sides, records)),
    )


def _contents(sides: tuple[Side, Side], records: tuple[Records, Records]) -> str:
    """See ``Dataset.contents``. Shards of unchanged images give the same hash as the folder that they came from."""
    first = len(sides[0].files)

    def read(number: int) -> bytes:
        return records[0].read(number) if number < first else records[1].read(number - first)

    return digest([*sides[0].bytes, *sides[1].bytes], read)
