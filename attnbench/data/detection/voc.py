"""PASCAL VOC (Everingham et al., IJCV 2010): ``<root>/VOC2007/{JPEGImages,Annotations,ImageSets/Main}``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from attnbench.base.errors import DataError
from attnbench.config.options import BoxAugment, Count, DataName, Names, checked
from attnbench.data.dataset import Dataset
from attnbench.data.detection.annotated import Annotated, Record, findings, pictures_digest, sound
from attnbench.data.detection.box_augment import augmentation
from attnbench.data.detection.scenes import NoArea, boxed, checked_box, scene_dataset
from attnbench.data.image_folders.folder import contents
from attnbench.data.images.checking import Finding, Seen
from attnbench.data.layouts import voc_years

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = "ImageSets/Main"  # the folder of the lists of splits
LARGEST = 1 << 20  # maximum bytes of an annotation; VOC's have a few thousand


@checked
def voc(
    *,
    root: str,
    train: Names,
    val: Names,
    augment: BoxAugment = "ssd",
    crop: Count = 300,
    name: DataName | None = None,
) -> Dataset:
    """VOC images with boxes. Difficult objects are not used for training, and evaluation ignores them.

    Args:
        root: the folder that holds ``VOC2007/`` or ``VOCdevkit/VOC2007/``.
        train, val: splits, such as ``VOC2007/trainval``; several are joined.
        augment: the augmentation of training images: ``ssd`` (photometric distortion, expansion, random crop, mirror,
            then resizing to ``crop`` x ``crop`` pixels), ``pytorch_ssd`` (the same steps as that project computes
            them; see ``box_augment``), ``mirror`` only, or ``none``.
        crop: side of a training image with ``augment=ssd`` or ``pytorch_ssd``.
        name: the name of the data if they are not VOC itself; part of a run's name.

    Raises:
        DataError: a file is missing, a split is empty, or an annotation is invalid; it names the file.
    """
    base = devkit(Path(root).expanduser())
    sides = [Annotated(sound(item for split in splits for item in _each(base, split))) for splits in (train, val)]
    counts = " + ".join(str(len(side)) for side in sides)
    return scene_dataset(
        *sides,
        classes=CLASSES,
        augment=augmentation(augment, crop),
        size=crop,
        source=f"{name or 'PASCAL VOC'}, {', '.join(train)} and {', '.join(val)}: {counts} images",
        facts=[_fact(record) for side in sides for record in side.records],
        contents=cache(partial(pictures_digest, sides)),
    )


def _fact(record: Record) -> bytes:
    """The bytes of a record that the fingerprint is computed over: file name, boxes, labels and difficult flags."""
    of = record.objects
    return repr((record.image.name, of.boxes.tolist(), of.labels.tolist(), of.difficult.tolist())).encode()


def devkit(root: Path) -> Path:
    """The folder that holds ``VOC2007/`` or another year's.

    Raises:
        DataError: there is no such folder.
    """
    if found := voc_years(root):
        return found[0].parent
    raise DataError(f"no VOC2007/ here: {contents(root)}", root, "set dataset.root to the folder that holds it")


def check(root: Path, seen: Seen, threads: int) -> Iterator[Finding]:
    """All problems in a VOC folder: in its splits, their annotations and images."""
    splits: dict[str, Iterator[Record | DataError]] = {}
    for year in voc_years(root):
        names = _splits(year)
        if not names:
            yield Finding(f"{year.name}/{LISTS}", "no split here: add trainval.txt or test.txt")
        splits |= {f"{year.name}/{name}": _each(year.parent, f"{year.name}/{name}") for name in names}
    yield from findings(root, splits, seen, threads)


def count(root: Path) -> int:
    """The number of images in all splits that can be read."""
    named: set[tuple[Path, str]] = set()
    for year in voc_years(root):
        for split in _splits(year):
            with suppress(DataError):
                named |= {(year, name) for name in _ids(year, split)}
    return len(named)


def _splits(year: Path) -> list[str]:
    """The splits of a year, without those of single classes, such as ``cat_val``."""
    return sorted(path.stem for path in (year / LISTS).glob("*.txt") if "_" not in path.stem)


def _ids(year: Path, split: str) -> list[str]:
    """The names of a split's images.

    Raises:
        DataError: the split cannot be read.
    """
    path = year / LISTS / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        what = f"the split {year.name}/{split} cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
        raise DataError(what, path, "restore it") from error
    return [line.split()[0] for line in lines if line.strip()]


def _each(base: Path, split: str) -> Iterator[Record | DataError]:
    """Each record of a split, or the error in it."""
    year, _, name = split.partition("/")
    folder = base / year / "JPEGImages"
    try:
        ids = _ids(base / year, name)
        images = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        yield DataError(f"the images cannot be listed: {error.strerror}", folder, "restore the folder")
        return
    except DataError as error:
        yield error
        return
    for identity in ids:
        try:
            yield _record(base / year, identity, images)
        except DataError as error:
            yield error


def _record(year: Path, identity: str, images: set[str]) -> Record:
    path = year / "Annotations" / f"{identity}.xml"
    if f"{identity}.jpg" not in images:
        raise DataError("this image is missing", year / "JPEGImages" / f"{identity}.jpg", "restore it")
    tree = parse(path)
    width, height = (int(_number(tree, f"size/{side}", path)) for side in ("width", "height"))
    found = tree.findall("object")  # direct children only: the parts of an object are not objects
    boxes = [_box(item, n, width, height, path) for n, item in enumerate(found, start=1)]
    labels = [_label(item, n, path) for n, item in enumerate(found, start=1)]
    difficult = np.array([item.findtext("difficult", "0").strip() == "1" for item in found], dtype=bool)
    image = year / "JPEGImages" / f"{identity}.jpg"
    return Record(image, width, height, boxed(boxes, labels, difficult=difficult))


def parse(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        DataError: the file cannot be read, is too large or damaged, or has a DOCTYPE, which could include other files
            or expand without limit.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"this annotation cannot be read: {error.strerror}", path, "restore it") from error
    if len(content) > LARGEST:
        raise DataError(f"this annotation has more than {LARGEST} bytes", path, "restore it")
    parser = ElementTree.XMLParser(target=_Builder(path))
    try:
        parser.feed(content)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"this annotation is not XML: {error}", path, "restore it") from error
    return root


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree and refuses a DOCTYPE; the parser reports one in any encoding."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise DataError("this annotation has a DOCTYPE", self.path, "remove the declaration")


def _box(item: ElementTree.Element, n: int, width: int, height: int, path: Path) -> tuple[float, ...]:
    """An object's box. VOC counts pixels from 1, and its last pixel is inclusive: from 1 to 1 is one pixel wide."""
    where = f"{path}: object {n}"
    left, top, right, bottom = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    if right <= left or bottom <= top:  # one pixel would have an area, but VOC has no such objects
        raise NoArea(f"a box without area: {left:g}, {top:g} to {right:g}, {bottom:g}", where, "repair or remove it")
    return checked_box((left - 1, top - 1, right, bottom), width, height, where)


def _label(item: ElementTree.Element, n: int, path: Path) -> int:
    name = item.findtext("name", "").strip()
    if name not in CLASSES:
        what = f"{name} is not a class of VOC" if name else "this object has no class name"
        raise DataError(what, f"{path}: object {n}", f"use {', '.join(CLASSES)}")
    return CLASSES.index(name)


def _number(item: ElementTree.Element, name: str, where: object) -> float:
    text = item.findtext(name)
    try:
        return float(text or "")
    except ValueError:
        problem = "is missing" if text is None else f"is {text!r}, not a number"
        raise DataError(f"{name} {problem}", where, "repair the annotation") from None
