"""PASCAL VOC (Everingham et al., IJCV 2010): ``<root>/VOC2007/{JPEGImages,Annotations,ImageSets/Main}``."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from attnbench.base.errors import ConfigError, DataError, nearest
from attnbench.config.options import BoxAugment, Count, DataName, Names, checked
from attnbench.data.dataset import Dataset
from attnbench.data.detection.annotated import (
    Annotated,
    Orientation,
    Record,
    counts,
    findings,
    is_leak,
    notes,
    size_of,
    sound,
    surveyed,
)
from attnbench.data.detection.box_augment import augmentation
from attnbench.data.detection.scenes import boxed, scene_dataset
from attnbench.data.detection.voc_xml import box, class_name, difficult, number, parse
from attnbench.data.exports.tools import how_to_convert
from attnbench.data.image_folders.folder import contents
from attnbench.data.images.checking import About, Finding, Seen
from attnbench.data.images.suffixes import FORMAT_OF
from attnbench.data.layouts import voc_years

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = "ImageSets/Main"  # the folder of the lists of splits
MARKED = re.compile(r"(.*\S)\s+(-1|0|1)")  # a line of the list of a class: whether the image has one


@checked
def voc(
    *,
    root: str,
    train: Names,
    val: Names,
    augment: BoxAugment = "ssd",
    crop: Count = 300,
    name: DataName | None = None,
    classes: Names | Literal["found"] | None = None,
    orientation: Orientation = "auto",
) -> Dataset:
    """VOC images with boxes. Difficult objects are not used for training, and evaluation ignores them.

    Args:
        root: the folder that holds ``VOC2007/`` or ``VOCdevkit/VOC2007/``, or ``JPEGImages/``, ``Annotations/`` and
            ``ImageSets/`` themselves.
        train, val: splits, such as ``VOC2007/trainval``, or ``train`` if ``root`` holds ``JPEGImages/``; several are
            joined.
        augment: the augmentation of training images: ``ssd`` (photometric distortion, expansion, random crop, mirror,
            then resizing to ``crop`` x ``crop`` pixels), ``pytorch_ssd`` (the same steps as that project computes
            them; see ``box_augment``), ``mirror`` only, or ``none``.
        crop: side of a training image with ``augment=ssd`` or ``pytorch_ssd``.
        name: the name of the data if they are not VOC itself; part of a run's name.
        classes: the names of the classes; ``found`` takes those in the annotations, in the order of names. None for
            VOC's, or for those that are found if none of them is VOC's.
        orientation: how an orientation in the EXIF data is used; see ``annotated.Orientation``.

    Raises:
        DataError: a file is missing, a split is empty, or an annotation is invalid; it names the file.
    """
    base = devkit(Path(root).expanduser())
    if base in voc_years(base) and (strange := next((one for one in (*train, *val) if "/" in one), "")):
        todo = f"set dataset.train and dataset.val to lists in {LISTS}/: {', '.join(_splits(base))}"
        raise DataError(f"no {strange} here", base, todo)
    splits = [sound(item for split in names for item in _each(base, split)) for names in (train, val)]
    known = _classes(classes, [record for side in splits for record in side])
    published = orientation == "auto" and known == CLASSES and not name and all("/" in one for one in (*train, *val))
    sides = [
        Annotated([labelled(record, known) for record in side], "published" if published else orientation)
        for side in splits
    ]
    look = surveyed(sides)
    amounts = " + ".join(str(len(side)) for side in sides)
    return scene_dataset(
        *sides,
        classes=known,
        augment=augmentation(augment, crop),
        size=crop,
        source=f"{name or 'PASCAL VOC'}, {', '.join(train)} and {', '.join(val)}: {amounts} images",
        facts=[*map(_fact, (record for side in sides for record in side.records)), *_fact_of_classes(known)],
        contents=lambda: look().contents,
        drawn=lambda: look().drawn(),
        notes=lambda: [*notes(sides, known), *look().notes()],
    )


@dataclass(frozen=True)
class Named(Record):
    """A record whose objects have the names of classes; their labels are set when the classes are known."""

    names: tuple[str, ...]
    path: Path


def labelled(record: Named, classes: Sequence[str]) -> Named:
    """A record with labels.

    Raises:
        DataError: an object has another class.
    """
    for n, name in enumerate(record.names, start=1):
        if name not in classes:
            what = f"{name} is not a class of VOC" if classes == CLASSES else f"{name} is not among the classes"
            todo = f"set dataset.classes to your own classes, or to found; {nearest(name, classes)}"
            raise DataError(what, f"{record.path}: object {n}", todo)
    labels = np.array([classes.index(name) for name in record.names], dtype=np.int64)
    return replace(record, objects=replace(record.objects, labels=labels))


def _classes(given: Sequence[str] | str | None, records: Sequence[Named]) -> tuple[str, ...]:
    """The classes; see ``voc``."""
    if isinstance(given, list):
        if not given:
            raise ConfigError("an empty list of classes", "dataset.classes", "name some, or set it to found")
        return tuple(given)
    found = {name for record in records for name in record.names}
    if given == "found" or (found and not found & set(CLASSES)):
        return tuple(sorted(found))
    return CLASSES


def _fact(record: Record) -> bytes:
    """The bytes of a record that the fingerprint is computed over: file name, boxes, labels and difficult flags."""
    of = record.objects
    return repr((record.image.name, of.boxes.tolist(), of.labels.tolist(), of.difficult.tolist())).encode()


def _fact_of_classes(classes: tuple[str, ...]) -> list[bytes]:
    """What the fingerprint has of classes that are not VOC's."""
    return [] if classes == CLASSES else [repr(classes).encode()]


def devkit(root: Path) -> Path:
    """The folder that holds ``VOC2007/`` or another year's, or that is such a folder itself.

    Raises:
        DataError: there is no such folder.
    """
    if found := voc_years(root):
        return root if found == [root] else found[0].parent
    todo = how_to_convert(root) or "set dataset.root to the folder that holds it"
    raise DataError(f"no VOC2007/ here: {contents(root)}", root, todo)


def check(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
    """All problems in a VOC folder: in its splits, their annotations and images."""
    splits: dict[str, list[Named | DataError]] = {}
    for year in voc_years(root):
        names = _splits(year)
        if not names:
            yield Finding(f"{year.name}/{LISTS}", "no split here: add trainval.txt or test.txt")
        before = "" if year == root else f"{year.name}/"
        base = root if year == root else year.parent
        splits |= {f"{before}{name}": [*_each(base, f"{before}{name}")] for name in names}
    records = [item for items in splits.values() for item in items if isinstance(item, Named)]
    known = _classes(None, records)
    checked = {split: [_checked(item, known) for item in items] for split, items in splits.items()}
    yield from findings(root, checked, seen, threads, lambda one, other: False)
    good = {split: [item for item in items if isinstance(item, Record)] for split, items in checked.items()}
    yield from (About(counts(split, items, known)) for split, items in good.items())
    for one, other in itertools.combinations(good, 2):
        shared = {item.image for item in good[one]} & {item.image for item in good[other]}
        if shared and is_leak(one, other):
            yield About(f"{one} and {other}: {len(shared):,} pictures in common")


def _checked(item: Named | DataError, classes: Sequence[str]) -> Named | DataError:
    if isinstance(item, DataError):
        return item
    try:
        return labelled(item, classes)
    except DataError as error:
        return error


def count(root: Path) -> int:
    """The number of images in all splits that can be read."""
    named: set[tuple[Path, str]] = set()
    for year in voc_years(root):
        for split in _splits(year):
            with suppress(DataError):
                named |= {(year, name) for name in _lines(year, split)}
    return len(named)


def _splits(year: Path) -> list[str]:
    """The splits of a year, without those of single classes, such as ``cat_val``."""
    names = sorted(path.stem for path in (year / LISTS).glob("*.txt"))
    whole = [name for name in names if "_" not in name]
    return whole or names


def _lines(year: Path, split: str) -> list[str]:
    """The lines of a split's list.

    Raises:
        DataError: the split cannot be read.
    """
    path = year / LISTS / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        what = f"the split {year.name}/{split} cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
        raise DataError(what, path, "restore it") from error
    return [line.strip() for line in lines if line.strip()]


def _each(base: Path, split: str) -> Iterator[Named | DataError]:
    """Each record of a split, or the error in it."""
    year, _, name = split.rpartition("/")
    folder = base / year / "JPEGImages"
    try:
        lines = _lines(base / year, name)
        images = _images(folder)
    except OSError as error:
        yield DataError(f"the images cannot be listed: {error.strerror}", folder, "restore the folder")
        return
    except DataError as error:
        yield error
        return
    for line in lines:
        try:
            yield _record(base / year, _identity(line, images), images)
        except DataError as error:
            yield error


def _images(folder: Path) -> dict[str, str]:
    """The files of images, by their path below ``JPEGImages/`` without suffix. Of several, a .jpg file is taken."""
    found: dict[str, str] = {}
    order = [".jpg", *(ending for ending in FORMAT_OF if ending != ".jpg")]

    def rank(ending: str) -> tuple[int, bool]:
        return order.index(ending.lower()) if ending else len(order), ending != ending.lower()

    os.stat(folder)  # an error, where os.walk would find nothing
    for below, _, files in os.walk(folder):
        before = os.path.relpath(below, folder)
        for file in files:
            stem, ending = os.path.splitext(file)
            place = os.path.normpath(os.path.join(before, stem))
            if ending.lower() in order and rank(ending) < rank(os.path.splitext(found.get(place, ""))[1]):
                found[place] = os.path.normpath(os.path.join(before, file))
    return found


def _identity(line: str, images: Mapping[str, str]) -> str:
    """The name of an image in a line of a list: the whole line, without a suffix, a folder or a mark behind it."""
    marked = MARKED.fullmatch(line)
    for text in [line, marked[1]] if marked else [line]:
        name = os.path.normpath(text.replace("\\", "/")).removeprefix("JPEGImages/")
        stem, ending = os.path.splitext(name)
        known = next((one for one in (name, stem if ending.lower() in FORMAT_OF else name) if one in images), None)
        if known:
            return known
    return os.path.normpath(marked[1] if marked else line)


def _record(year: Path, identity: str, images: Mapping[str, str]) -> Named:
    path = year / "Annotations" / f"{identity}.xml"
    if identity not in images:
        raise DataError("this image is missing", year / "JPEGImages" / f"{identity}.jpg", "restore it")
    tree = parse(path)
    width, height = size_of(number(tree, "size/width", path), number(tree, "size/height", path), path)
    found = tree.findall("object")  # direct children only: the parts of an object are not objects
    boxes = [box(item, n, width, height, path) for n, item in enumerate(found, start=1)]
    names = tuple(class_name(item, n, path) for n, item in enumerate(found, start=1))
    flags = np.array([difficult(item, n, path) for n, item in enumerate(found, start=1)], dtype=bool)
    image = year / "JPEGImages" / images[identity]
    return Named(image, width, height, boxed(boxes, [0] * len(found), difficult=flags), names, path)
