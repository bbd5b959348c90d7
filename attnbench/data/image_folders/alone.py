"""Pictures to evaluate on, without any to train on: ``val/<class>/``, a folder of classes, or a folder of such folders.

ImageNet-V2, -A and -R are published as folders of classes, ImageNet-C as ``<corruption>/<severity>/<class>/``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.dataset import RGB, Dataset
from attnbench.data.image_folders import parquet
from attnbench.data.image_folders.folder import Side, contents, fingerprint, left_out_line, suffix
from attnbench.data.image_folders.own import VALIDATION
from attnbench.data.images.crops import Crops
from attnbench.data.images.files import Files, Loose
from attnbench.data.images.suffixes import FORMAT_OF

SUFFIXES = tuple(FORMAT_OF)
DEEPEST = 4  # folders above the pictures: ImageNet-C has three, or four with the name of its archive


def has_training(root: Path) -> bool:
    """Whether a folder has pictures to train on, so that a data set's own builder reads it."""
    if parquet.are_here(root):
        return "train" in parquet.open_parquet(root).tables
    return (root / "train").is_dir()


def evaluation_only(root: Path, crops: Crops, mean: RGB, std: RGB, upright: bool = False) -> Dataset:
    """The pictures below a folder, as both splits of a data set, of which only ``val`` is meant to be used.

    Args:
        root: holds ``val/`` (or another validation folder) with a folder for each class, or these folders, or folders
            that hold them. A picture's class is the name of the folder that it lies in.
        upright: whether to apply the orientation in the pictures' EXIF data.

    Raises:
        DataError: there is no folder with pictures, or one cannot be listed.
    """
    if parquet.are_here(root):
        return _of_parquet(root, crops, mean, std, upright)
    top = next((root / name for name in VALIDATION if (root / name).is_dir()), root)
    left_out = Counter[str]()
    found = sorted(_pictures(top, (), DEEPEST, left_out))
    if not found:
        raise DataError(f"no <class>/*.jpg here: {contents(top)}", top, "give a folder that holds a folder per class")
    classes = tuple(sorted({parts[-2] for parts, _ in found}))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[parts[-2]] for parts, _ in found]
    side = Side(top, ["/".join(parts) for parts, _ in found], labels, [size for _, size in found])
    split = Files(Loose(side), crops, upright)
    source = f"{root.resolve().name}, evaluation only: {len(classes)} classes, {len(found)} images"
    if left_out:
        source += f"; {left_out_line(left_out)}"
    return Dataset(classes, split, split, crops.size, mean, std, source, fingerprint(side))


def _of_parquet(root: Path, crops: Crops, mean: RGB, std: RGB, upright: bool) -> Dataset:
    found = parquet.open_parquet(root)
    table = found.held or next(iter(found.tables.values()))
    split = Files(parquet.Parquet(table), crops, upright)
    source = f"{root.resolve().name}, evaluation only: {len(found.classes)} classes, {len(split)} images"
    known = parquet.fingerprint([table], [table.side])
    return Dataset(found.classes, split, split, crops.size, mean, std, source, known)


def _pictures(
    folder: Path, above: tuple[str, ...], levels: int, left_out: Counter[str]
) -> list[tuple[tuple[str, ...], int]]:
    """The path below the first folder, and the size in bytes, of each picture that lies in a folder of its own.

    Args:
        left_out: counts the other files in such folders, by suffix.
    """
    found = []
    try:
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if levels:
                    found += _pictures(Path(entry.path), (*above, entry.name), levels - 1, left_out)
            elif above and entry.name.lower().endswith(SUFFIXES):
                found.append(((*above, entry.name), entry.stat().st_size))
            elif above:
                left_out[suffix(entry.name)] += 1
    except OSError as error:
        what = f"this folder cannot be listed: {error.strerror}"
        raise DataError(what, error.filename or folder, "restore or remove it") from error
    return found
