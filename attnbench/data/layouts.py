"""The layouts of data sets that ``attnbench data check`` recognises, and the problems that it finds in them.

To add a layout, add a ``Format`` to ``FORMATS``: it recognises a folder, counts its images and checks them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.exports import tools
from attnbench.data.image_folders import parquet
from attnbench.data.image_folders.folder import (
    OUTSIDE,
    Side,
    class_names,
    contents,
    files_beside,
    has_classes,
    left_out_line,
    suffix,
    where_it_is,
)
from attnbench.data.image_folders.labels import read_flat
from attnbench.data.image_folders.own import TRAIN, VALIDATION, counts
from attnbench.data.image_folders.shards import Contents, Shards, are_here, open_shards
from attnbench.data.image_folders.tar_shards import Shard, is_whole
from attnbench.data.images.checking import About, Finding, Format, Picture, Seen, examine
from attnbench.data.images.pillow import read_file
from attnbench.data.images.suffixes import SUFFIXES

MANIFEST = "SHA256SUMS"
SIDES = (TRAIN, *VALIDATION)
PICTURES = SUFFIXES["all"]


def recognise(root: Path) -> Format:
    """The layout of a folder.

    Raises:
        DataError: the folder has none of the known layouts.
    """
    if todo := tools.how_to_convert(root):
        raise DataError("this is an export of an annotation tool, which runs do not read", root, todo)
    for known in FORMATS:
        if known.is_here(root):
            return known
    todo = where_it_is(root)
    if "=" not in todo:
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
    return [side / name for name in class_names(side)] if has_classes(side) else []


def _images_of(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.name.lower().endswith(PICTURES)]


def _count(root: Path) -> int:
    """The number of pictures in class folders, and in sides without any."""
    folders = (folder for side in _sides(root) for folder in (_classes(side) or [side]))
    return sum(len(_images_of(folder)) for folder in folders)


def _check_folder(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
    yield from _layout(root, _sides(root))
    yield from _check_sides(root, _sides(root), seen, threads)


def _check_classes(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
    """One folder of classes, without train/."""
    yield Finding(str(root), "one folder of classes: use dataset=folder with dataset.holdout or dataset.fold", True)
    yield from _check_sides(root, [root], seen, threads)


def _check_sides(root: Path, sides: Sequence[Path], seen: Seen, threads: int) -> Iterator[Finding | About]:
    known = class_names(sides[0]) if has_classes(sides[0]) else ()
    manifest = Manifest(root)
    pictures: list[Picture] = []
    abouts: list[str] = []
    for side in sides:
        found, left_out = Side(side, [], [], []), Counter[str]()
        for name in files_beside(side) if _classes(side) else ():
            left_out[f"{suffix(name)} {OUTSIDE}"] += 1
            if suffix(name) in PICTURES:
                yield Finding(_below(root, side / name), "it is not in a class folder: it is not read", harmless=True)
        for folder in _classes(side):
            yield from _listing(root, folder, left_out)
            _add(found, folder, known)
        if not _classes(side) and _images_of(side):
            try:
                found, listed = read_flat(side, known, None, "all")
                left_out, abouts = found.left_out, [*abouts, f"labels of {side.name}/: {listed}"]
            except DataError as error:
                yield Finding(_below(root, error.where), "; ".join(filter(None, (error.what, error.todo))))
        pictures += [_picture(root, found, k, manifest) for k in range(len(found.files))]
        abouts += [counts(f"{side.name}/", found, known), left_out_line(left_out, f"{side.name}/: ")] if known else []
        other = sum(not file.lower().endswith(SUFFIXES["jpeg_png"]) for file in found.files)
        abouts += [f"{side.name}/: {other:,} pictures are read by dataset=folder only"] if other else []
    yield from examine(pictures, seen, threads)
    yield from manifest.missing()
    yield from map(About, filter(None, abouts))


def _add(side: Side, folder: Path, known: tuple[str, ...]) -> None:
    """Add the pictures of a class folder; one of an unknown class has no label."""
    for path in _images_of(folder):
        side.files.append(f"{folder.name}/{path.name}")
        side.labels.append(known.index(folder.name) if folder.name in known else -1)


def _picture(root: Path, side: Side, number: int, manifest: Manifest) -> Picture:
    path = side.path(number)
    kind = f"{side.name}/{side.files[number].partition('/')[0]}"
    return Picture(str(path.relative_to(root)), kind, manifest.reading(path))


def _below(root: Path, where: object) -> str:
    return str(where).removeprefix(f"{root}/")


def _layout(root: Path, sides: Sequence[Path]) -> Iterator[Finding]:
    """Missing splits, splits without a class, and classes that only one split has."""
    if len(sides) < 2:
        todo = "or dataset=folder with dataset.holdout" if sides[0].name == TRAIN else ""
        yield Finding(str(root), f"a run needs train/ and val/; {contents(root)}{f'; {todo}' if todo else ''}")
    elif not (root / "val").is_dir():
        yield Finding(sides[1].name, "read as val/ by dataset=folder; other data sets do not read it", harmless=True)
    known = {folder.name for folder in _classes(sides[0])}
    for side in sides:
        names = {folder.name for folder in _classes(side)}
        if not names and (side == sides[0] or not _images_of(side)):
            yield Finding(side.name, f"no class folder; {contents(side)}")
        for name in sorted(names - known):
            yield Finding(f"{side.name}/{name}", f"this class is not in {sides[0].name}/")
        for name in sorted(known - names if names else []):
            yield Finding(f"{side.name}/{name}", "this class has no folder here", harmless=True)


def _listing(root: Path, folder: Path, left_out: Counter[str]) -> Iterator[Finding]:
    """The findings in one class folder: no image, folders, other files, and names that some file systems confuse."""
    where = str(folder.relative_to(root))
    images = _images_of(folder)
    if not images:
        yield Finding(where, f"this class has no image: {contents(folder)}")
    for entry in _entries(folder):
        if entry.is_dir():
            yield Finding(f"{where}/{entry.name}", "a folder inside a class folder: its files are not read")
        elif not entry.name.lower().endswith(PICTURES):
            left_out[suffix(entry.name)] += 1
            yield Finding(f"{where}/{entry.name}", "its name is not that of an image: it is ignored", harmless=True)
    alike: dict[str, list[str]] = defaultdict(list)
    for path in images:
        alike[path.stem.lower()].append(path.name)
    for first, *others in alike.values():
        for name in others:
            endings = {suffix(one).replace("jpeg", "jpg") for one in (first, name)}
            what = f"the same name as {first} except for case or suffix"
            yield Finding(f"{where}/{name}", what, harmless=Path(name).stem == Path(first).stem and len(endings) == 2)


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
            if name.lower().endswith(PICTURES) and not (self.root / name).exists():
                yield Finding(name, f"{MANIFEST} lists it, but it does not exist")


def _shard_records(root: Path) -> int:
    try:
        found = open_shards(root)
    except DataError:
        return 0
    return len(found.train.side.files) + len(found.val.side.files)


def _check_shards(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
    try:
        found = open_shards(root)
    except DataError as error:
        yield Finding(error.where, error.what)
        return
    altered: list[Shard] = []
    damaged = set()
    for finding in examine(_records(found, altered), seen, threads):
        if isinstance(finding, Finding) and "this record is damaged" in finding.what:
            damaged.add(finding.where.partition(",")[0])
        yield finding
    for shard in altered:
        if str(shard.path) not in damaged:
            what = "this file is damaged: its checksum is wrong, but those of its pictures are not"
            yield Finding(str(shard.path), what)
    yield from (About(counts(f"{one.side.name}/", one.side, found.classes)) for one in (found.train, found.val))


def _records(found: Contents, altered: list[Shard]) -> Iterator[Picture]:
    """The pictures in shards; shards whose checksum is wrong are added to ``altered``."""
    for side in (found.train, found.val):
        records, first = Shards(side), 0
        for shard in side.shards:
            for k in range(first, first + len(shard.names)):
                kind = f"{side.side.folder.name}/{records.labels[k]}"
                yield Picture(records.where(k), kind, partial(records.read, k))
            first += len(shard.names)
            if not is_whole(shard):
                altered.append(shard)


def _count_parquet(root: Path) -> int:
    try:
        return sum(len(one.side.files) for one in parquet.open_parquet(root).tables.values())
    except DataError:
        return 0


def _check_parquet(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
    try:
        found = parquet.open_parquet(root)
    except DataError as error:
        yield Finding(error.where, error.what)
        return
    pictures = (
        Picture(records.where(k), f"{split}/{records.labels[k]}", partial(records.read, k))
        for split, table in found.tables.items()
        for records in [parquet.Parquet(table)]
        for k in range(len(records))
    )
    yield from examine(pictures, seen, threads)
    yield from map(About, found.notes)
    yield from (About(counts(split, table.side, found.classes)) for split, table in found.tables.items())


def _of_module(name: str) -> tuple[Callable[[Path], int], Callable[[Path, Seen, int], Iterator[Finding | About]]]:
    """A module's ``count`` and ``check``. The module imports torch, so it is imported only when its layout is found."""
    path = f"attnbench.data.detection.{name}"

    def count(root: Path) -> int:
        number: int = import_module(path).count(root)
        return number

    def check(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
        yield from import_module(path).check(root, seen, threads)

    return count, check


def voc_years(root: Path) -> list[Path]:
    """The folders ``VOC<year>/`` in a folder or in its ``VOCdevkit/``, or the folder itself if it is such a one."""
    years = sorted(path for base in (root, root / "VOCdevkit") for path in base.glob("VOC[0-9]*") if path.is_dir())
    return years or [root] * (root / "ImageSets" / "Main").is_dir()


def _is_one_folder(root: Path) -> bool:
    """Whether a folder has class folders with pictures."""
    return any(_images_of(folder) for folder in _classes(root))


def _count_classes(root: Path) -> int:
    return sum(len(_images_of(folder)) for folder in _classes(root))


def _is_coco(root: Path) -> bool:
    return (root / "annotations").is_dir()


# The order matters: a COCO folder may also have train/ and val/, so COCO comes before the image folder.
FORMATS = [
    Format("shards of attnbench data shard", are_here, _shard_records, _check_shards),
    Format(
        "PASCAL VOC VOC2007/{JPEGImages,Annotations,ImageSets}", lambda root: bool(voc_years(root)), *_of_module("voc")
    ),
    Format("COCO annotations/instances_*.json", _is_coco, *_of_module("coco")),
    Format("Hugging Face parquet files", parquet.are_here, _count_parquet, _check_parquet),
    Format("image folder train/<class>/*.jpg", lambda root: bool(_sides(root)), _count, _check_folder),
    Format("one folder of classes <class>/*.jpg", _is_one_folder, _count_classes, _check_classes),
]
