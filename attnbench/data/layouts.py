"""The layouts of data sets that ``attnbench data check`` recognises, and the problems that it finds in them.

To add a layout, add a ``Format`` to ``FORMATS``: it recognises a folder, counts its images and checks them.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.image_folders.folder import SUFFIXES, contents
from attnbench.data.image_folders.shards import Shards, are_here, open_shards
from attnbench.data.images.checking import Finding, Format, Picture, Seen, examine
from attnbench.data.images.pillow import read_file

MANIFEST = "SHA256SUMS"
SIDES = ("train", "val", "test")


def recognise(root: Path) -> Format:
    """The layout of a folder.

    Raises:
        DataError: the folder has none of the known layouts.
    """
    for known in FORMATS:
        if known.is_here(root):
            return known
    todo = f"use one of these layouts: {', '.join(known.name for known in FORMATS)}"
    raise DataError(f"unknown data set layout: {contents(root)}", root, todo)


def _sides(root: Path) -> list[Path]:
    return [root / name for name in SIDES if (root / name).is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden ones.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        return sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"this folder cannot be listed: {error.strerror}", folder, "restore or remove it") from error


def _classes(side: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(side) if entry.is_dir()]


def _images_of(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES)]


def _count(root: Path) -> int:
    return sum(len(_images_of(folder)) for side in _sides(root) for folder in _classes(side))


def _check_folder(root: Path, seen: Seen, threads: int) -> Iterator[Finding]:
    sides = _sides(root)
    yield from _layout(root, sides)
    for folder in (folder for side in sides for folder in _classes(side)):
        yield from _listing(folder)
    manifest = Manifest(root)
    pictures = (
        Picture(str(path.relative_to(root)), f"{side.name}/{folder.name}", manifest.reading(path))
        for side in sides
        for folder in _classes(side)
        for path in _images_of(folder)
    )
    yield from examine(pictures, seen, threads)
    yield from manifest.missing()


def _layout(root: Path, sides: Sequence[Path]) -> Iterator[Finding]:
    """Missing splits, splits without a class, and classes that only one split has."""
    if len(sides) < 2:
        yield Finding(str(root), f"a run needs train/ and val/; {contents(root)}")
    known = {folder.name for folder in _classes(sides[0])}
    for side in sides:
        names = {folder.name for folder in _classes(side)}
        if not names:
            yield Finding(side.name, f"no class folder; {contents(side)}")
        for name in sorted(names - known):
            yield Finding(f"{side.name}/{name}", f"this class is not in {sides[0].name}/")
        for name in sorted(known - names):
            yield Finding(f"{side.name}/{name}", "this class has no folder here", harmless=True)


def _listing(folder: Path) -> Iterator[Finding]:
    """The findings in one class folder: no image, folders, other files, and names that some file systems confuse."""
    where = f"{folder.parent.name}/{folder.name}"
    images = _images_of(folder)
    if not images:
        yield Finding(where, f"this class has no image: {contents(folder)}")
    for entry in _entries(folder):
        if entry.is_dir():
            yield Finding(f"{where}/{entry.name}", "a folder inside a class folder: its files are not read")
        elif not entry.name.lower().endswith(SUFFIXES):
            yield Finding(f"{where}/{entry.name}", "its name is not that of an image: it is ignored", harmless=True)
    alike: dict[str, list[str]] = defaultdict(list)
    for path in images:
        alike[path.stem.lower()].append(path.name)
    for first, *others in alike.values():
        for name in others:
            yield Finding(f"{where}/{name}", f"the same name as {first} except for case or suffix")


class Manifest:
    """The image hashes that ``SHA256SUMS`` in the data set's folder lists, if the file exists."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / MANIFEST
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
        self.sums = {os.path.normpath(name.lstrip("*")): digest.lower() for digest, name in pairs}
        self.read: set[str] = set()

    def reading(self, path: Path) -> Callable[[], bytes]:
        """A function that reads a file; it raises a DataError if the hash differs from the listed one."""
        name = str(path.relative_to(self.root))

        def read() -> bytes:
            self.read.add(name)
            data = read_file(path)
            if name in self.sums and hashlib.sha256(data).hexdigest() != self.sums[name]:
                raise DataError(f"its SHA-256 is not the one in {MANIFEST}", name)
            return data

        return read

    def missing(self) -> Iterator[Finding]:
        """Images that are listed but do not exist."""
        for name in sorted(self.sums.keys() - self.read):
            if name.lower().endswith(SUFFIXES) and not (self.root / name).exists():
                yield Finding(name, f"{MANIFEST} lists it, but it does not exist")


def _shard_records(root: Path) -> int:
    try:
        found = open_shards(root)
    except DataError:
        return 0
    return len(found.train.side.files) + len(found.val.side.files)


def _check_shards(root: Path, seen: Seen, threads: int) -> Iterator[Finding]:
    try:
        found = open_shards(root)
    except DataError as error:
        yield Finding(error.where, error.what)
        return
    pictures = (
        Picture(records.where(k), f"{side.side.folder.name}/{records.labels[k]}", partial(records.read, k))
        for side in (found.train, found.val)
        for records in [Shards(side)]
        for k in range(len(records))
    )
    yield from examine(pictures, seen, threads)


def _of_module(name: str) -> tuple[Callable[[Path], int], Callable[[Path, Seen, int], Iterator[Finding]]]:
    """A module's ``count`` and ``check``. The module imports torch, so it is imported only when its layout is found."""
    path = f"attnbench.data.detection.{name}"

    def count(root: Path) -> int:
        number: int = import_module(path).count(root)
        return number

    def check(root: Path, seen: Seen, threads: int) -> Iterator[Finding]:
        yield from import_module(path).check(root, seen, threads)

    return count, check


def voc_years(root: Path) -> list[Path]:
    """The folders ``VOC<year>/`` in a folder or in its ``VOCdevkit/``."""
    return sorted(path for base in (root, root / "VOCdevkit") for path in base.glob("VOC[0-9]*") if path.is_dir())


def _is_coco(root: Path) -> bool:
    return (root / "annotations").is_dir()


# The order matters: a COCO folder may also have train/ and val/, so COCO comes before the image folder.
FORMATS = [
    Format("shards of attnbench data shard", are_here, _shard_records, _check_shards),
    Format(
        "PASCAL VOC VOC2007/{JPEGImages,Annotations,ImageSets}", lambda root: bool(voc_years(root)), *_of_module("voc")
    ),
    Format("COCO annotations/instances_*.json", _is_coco, *_of_module("coco")),
    Format("image folder train/<class>/*.jpg", lambda root: bool(_sides(root)), _count, _check_folder),
]
