"""Image folders: ``<split>/<class>/<image>``, the layout of ImageNet and many others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from attnbench.base.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")
LISTERS = 16  # threads: on a network file system, listing a folder is mostly waiting


@dataclass(frozen=True)
class Side:
    """The images of one split.

    Attributes:
        folder: the split's folder.
        files: ``class/name`` of each image, sorted.
        labels: the class of each image, as an index into the training classes.
        bytes: the size of each file in bytes.
    """

    folder: Path
    files: list[str]
    labels: list[int]
    bytes: list[int]


def read_sides(root: Path, val_names: tuple[str, ...]) -> tuple[tuple[str, ...], Side, Side]:
    """The classes, the training images and the validation images below ``root``.

    Classes are the sorted folders of ``train/``. The validation folder is the first of ``val_names`` that exists. It
    may lack some classes, but it must not have other ones.

    Raises:
        DataError: a folder is missing, a class folder holds no image, or validation has an unknown class.
    """
    train = _require(root, ("train",))
    val = _require(root, val_names)
    classes = _class_names(train)
    index = {name: label for label, name in enumerate(classes)}
    val_classes = _class_names(val)
    for name in val_classes:
        if name not in index:
            todo = f"remove it, or add the class to {train}"
            raise DataError(f"class {name} has no training images", val / name, todo)
    return classes, _read_side(train, classes, index), _read_side(val, val_classes, index)


def fingerprint(*sides: Side, changed: str = "") -> str:
    """SHA-256 in hex over the path and size of every file (not its contents) and over ``changed``, a description."""
    digest = hashlib.sha256(changed.encode())
    for side in sides:
        for name, size in zip(side.files, side.bytes, strict=True):
            digest.update(os.fsencode(f"{side.folder.name}/{name}\0{size}\n"))
    return digest.hexdigest()


def contents(folder: Path) -> str:
    """What a folder contains, as a short phrase for an error message."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(entry.name for entry in os.scandir(folder))
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"it holds {shown}" if names else "it is empty"


def _require(root: Path, names: Iterable[str]) -> Path:
    """The first of the named folders that exists below ``root``."""
    looked_for = [root / name for name in names]
    for folder in looked_for:
        if folder.is_dir():
            return folder
    wanted = " or ".join(f"{folder.name}/<class>/*.jpg" for folder in looked_for)
    todo = "set dataset.root to the data set's folder"
    raise DataError(f"no {wanted} here: {contents(root)}", root, todo)


def _class_names(folder: Path) -> tuple[str, ...]:
    folders = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    names = tuple(sorted(name for name in folders if _visible(name)))
    if not names:
        todo = "put <class>/*.jpg into it"
        raise DataError(f"no class folder here: {contents(folder)}", folder, todo)
    return names


def _read_side(folder: Path, classes: tuple[str, ...], index: dict[str, int]) -> Side:
    side = Side(folder, [], [], [])
    with ThreadPoolExecutor(LISTERS) as pool:
        listed = pool.map(_images, [folder / name for name in classes])
        for name, images in zip(classes, listed, strict=True):
            for image, size in images:
                side.files.append(f"{name}/{image}")
                side.labels.append(index[name])
                side.bytes.append(size)
    return side


def _images(folder: Path) -> list[tuple[str, int]]:
    """The names and sizes in bytes of the images in a class folder, sorted by name."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES)]
        images = sorted((file.name, file.stat().st_size) for file in entries if _visible(file.name))
    except OSError as error:  # no permission, or a broken link
        what = f"this folder cannot be listed: {error.strerror}"
        raise DataError(what, error.filename or folder, "restore or remove it") from error
    if not images:
        todo = f"put {', '.join(SUFFIXES)} files into it, or remove it"
        raise DataError(f"this class has no image: {contents(folder)}", folder, todo)
    return images


def _visible(name: str) -> bool:
    """Whether a file is not hidden, as the ``._name`` files are that macOS adds to every file it copies."""
    return not name.startswith(".")
