"""Image folders: ``<split>/<class>/<image>``, the layout of ImageNet and many others."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.base.errors import DataError
from attnbench.data.images.suffixes import SUFFIXES, Formats

OUTSIDE = "outside of class folders"
NESTED = "in folders inside a class"  # what is left out because it lies too deep
NOT_CLASSES = ("__MACOSX",)  # folders that unpacking leaves beside those of classes
LISTERS = 16  # threads: on a network file system, listing a folder is mostly waiting


@dataclass(frozen=True)
class Side:
    """The images of one split.

    Attributes:
        folder: the folder below which they are.
        files: ``class/name`` of each image, sorted.
        labels: the class of each image, as an index into the training classes.
        bytes: the size of each file in bytes.
        places: the path of each image below ``folder``, if it is not ``class/name``.
        part: the name of the split, if it is not the folder's.
        left_out: how many files are not read, by suffix; see ``left_out_line``.
    """

    folder: Path
    files: list[str]
    labels: list[int]
    bytes: list[int]
    places: list[str] | None = None
    part: str = ""
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The name of the split, such as ``train``."""
        return self.part or self.folder.name

    def path(self, number: int) -> Path:
        """The file of an image."""
        return self.folder / (self.places or self.files)[number]

    def chosen(self, numbers: Sequence[int], part: str) -> Side:
        """Some of the images, in order, as the split ``part``."""

        def of(values: list[Any]) -> list[Any]:
            return [values[number] for number in numbers]

        places = None if self.places is None else of(self.places)
        return Side(self.folder, of(self.files), of(self.labels), of(self.bytes), places, part, self.left_out)


def read_sides(
    root: Path, val_names: tuple[str, ...], formats: Formats = "jpeg_png"
) -> tuple[tuple[str, ...], Side, Side]:
    """The classes, the training images and the validation images below ``root``.

    Classes are the sorted folders of ``train/``. The validation folder is the first of ``val_names`` that exists. It
    may lack some classes, but it must not have other ones.

    Raises:
        DataError: a folder is missing, a class folder holds no image, or validation has an unknown class.
    """
    train, val = require(root, ("train",)), require(root, val_names)
    classes = class_names(train)
    val_classes = class_names(val)
    refuse_unknown(val_classes, classes, train, val)
    return classes, read_side(train, classes, classes, formats), read_side(val, val_classes, classes, formats)


def refuse_unknown(names: Iterable[str], classes: Sequence[str], train: Path, val: Path) -> None:
    """Refuse a validation class that training does not have.

    Raises:
        DataError: names the class.
    """
    for name in names:
        if name not in classes:
            meant = next((known for known in classes if known.lower() == name.lower()), "")
            todo = f"is it {meant}? rename the folder" if meant else f"remove it, or add the class to {train}"
            raise DataError(f"class {name} has no training images", val / name, todo)


def fingerprint(*sides: Side, changed: str = "") -> str:
    """SHA-256 in hex over the path and size of every file (not its contents) and over ``changed``, a description."""
    digest = hashlib.sha256(changed.encode())
    for side in sides:
        for name, size in zip(side.files, side.bytes, strict=True):
            digest.update(os.fsencode(f"{side.name}/{name}\0{size}\n"))
    return digest.hexdigest()


def contents(folder: Path) -> str:
    """What a folder contains, as a short phrase for an error message."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(entry.name for entry in os.scandir(folder))
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"it holds {shown}" if names else "it is empty"


def require(root: Path, names: Iterable[str]) -> Path:
    """The first of the named folders that exists below ``root``.

    Raises:
        DataError: there is none; it says where a folder with train/ is, if one is below ``root``.
    """
    looked_for = [root / name for name in names]
    for folder in looked_for:
        if folder.is_dir():
            return folder
    wanted = " or ".join(f"{folder.name}/<class>/*.jpg" for folder in looked_for)
    raise DataError(f"no {wanted} here: {contents(root)}", root, where_it_is(root))


DEEPEST = 3  # folders between dataset.root and the folder that holds train/, such as ILSVRC/Data/CLS-LOC


def where_it_is(root: Path) -> str:
    """What to do about a folder without train/: the folder below it that has one, if it is the only way down."""
    below = root
    for _ in range(DEEPEST):
        folders = [below / name for name in _folders(below)] if below.is_dir() else []
        found = next((folder for folder in folders if (folder / "train").is_dir()), None)
        if found:
            return f"use dataset.root={found}"
        data = [folder for folder in folders if folder.name == "Data"] or folders
        if len(data) != 1:
            break
        below = data[0]
    return "set dataset.root to the data set's folder"


def _folders(folder: Path) -> list[str]:
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise DataError(f"this folder cannot be listed: {error.strerror}", folder, "restore or remove it") from error
    return sorted(name for name in names if _visible(name) and name not in NOT_CLASSES)


def files_beside(folder: Path) -> list[str]:
    """The names of files beside the class folders, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if _visible(entry.name) and not entry.is_dir())


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders in a folder, sorted by name.

    Raises:
        DataError: there are none.
    """
    names = tuple(_folders(folder))
    if not names:
        todo = "put <class>/*.jpg into it"
        raise DataError(f"no class folder here: {contents(folder)}", folder, todo)
    return names


def has_classes(folder: Path) -> bool:
    """Whether a folder has folders that may be classes."""
    return folder.is_dir() and bool(_folders(folder))


def read_side(folder: Path, names: Sequence[str], classes: Sequence[str], formats: Formats) -> Side:
    """The images in some class folders.

    Args:
        names: the class folders to read.
        classes: all classes; labels are positions in them.

    Raises:
        DataError: a class folder cannot be listed or holds no image.
    """
    side = Side(folder, [], [], [], left_out=Counter(f"{suffix(name)} {OUTSIDE}" for name in files_beside(folder)))
    index = {name: label for label, name in enumerate(classes)}
    with ThreadPoolExecutor(LISTERS) as pool:
        listed = pool.map(lambda name: list_images(folder / name, formats), names)
        for name, (images, left_out) in zip(names, listed, strict=True):
            side.left_out.update(left_out)
            for image, size in images:
                side.files.append(f"{name}/{image}")
                side.labels.append(index[name])
                side.bytes.append(size)
    return side


def list_images(folder: Path, formats: Formats, empty: bool = False) -> tuple[list[tuple[str, int]], Counter[str]]:
    """The names and sizes in bytes of the images in a folder, sorted by name, and what is left out, by suffix.

    Args:
        empty: whether the folder may have no image.

    Raises:
        DataError: the folder cannot be listed or holds no image.
    """
    images, left_out = [], Counter[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in filter(lambda entry: _visible(entry.name), entries):
                if entry.name.lower().endswith(SUFFIXES[formats]):
                    images.append((entry.name, entry.stat().st_size))
                elif entry.is_dir():
                    left_out[NESTED] += sum(1 for _ in _pictures_below(Path(entry.path)))
                else:
                    left_out[suffix(entry.name)] += 1
    except OSError as error:  # no permission, or a broken link
        what = f"this folder cannot be listed: {error.strerror}"
        raise DataError(what, error.filename or folder, "restore or remove it") from error
    if not images and not empty:
        more = "; dataset.formats=all reads more formats" if any(map(_is_picture, left_out)) else ""
        todo = f"put {', '.join(SUFFIXES[formats])} files into it, or remove it{more}"
        raise DataError(f"this class has no image: {contents(folder)}", folder, todo)
    return sorted(images), left_out


MOST = 10_000  # pictures in folders inside a class that are counted


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Pictures in a folder and the folders in it; links are not followed."""
    found = (Path(base) / name for base, _, names in os.walk(folder) for name in names if _is_picture(suffix(name)))
    for number, path in enumerate(found):
        if number == MOST:
            return
        yield path


def _is_picture(ending: str) -> bool:
    return ending in SUFFIXES["all"]


def suffix(name: str) -> str:
    """A file's suffix in small letters; a word for none."""
    return os.path.splitext(name)[1].lower() or "without a suffix"


def left_out_line(left_out: Mapping[str, int], where: str = "") -> str:
    """What is not read, counted by suffix: ``left out: 3 .webp, 1 .txt``; empty if there is nothing."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{number:,} {ending}" for ending, number in ordered if number)
    more = "; dataset=folder reads more formats" if any(map(_is_picture, left_out)) else ""
    return f"{where}left out: {counts}{more}" if counts else ""


def _visible(name: str) -> bool:
    """Whether a file is not hidden, as the ``._name`` files are that macOS adds to every file it copies."""
    return not name.startswith(".")
