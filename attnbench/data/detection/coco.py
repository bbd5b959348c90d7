"""COCO (Lin et al., arXiv:1405.0312) and data sets in its format: ``<root>/annotations/instances_<split>.json``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attnbench.base.errors import DataError, nearest
from attnbench.config.options import BoxAugment, Count, DataName, Names, checked
from attnbench.data.dataset import Dataset
from attnbench.data.detection.annotated import (
    Annotated,
    Orientation,
    Record,
    counts,
    findings,
    flag,
    is_leak,
    notes,
    size_of,
    sound,
    surveyed,
)
from attnbench.data.detection.box_augment import augmentation
from attnbench.data.detection.coco_outlines import area, checked_outline, mask
from attnbench.data.detection.scenes import NoArea, Objects, boxed, checked_box, scene_dataset
from attnbench.data.exports.tools import how_to_convert
from attnbench.data.image_folders.folder import contents
from attnbench.data.images.checking import About, Finding, Seen

PUBLISHED = ("train2017", "val2017")  # the splits of COCO itself


@checked
def coco(
    *,
    root: str,
    train: str = "train2017",
    val: str = "val2017",
    augment: BoxAugment = "mirror",
    crop: Count = 300,
    without_area: Literal["refuse", "drop"] = "refuse",
    keep_empty: bool = True,
    name: DataName | None = None,
    classes: Names | None = None,
    orientation: Orientation = "auto",
) -> Dataset:
    """COCO images with boxes and masks. Crowds are not used for training, and detections in them are ignored.

    Args:
        root: the folder that holds ``annotations/`` and one folder of images for each split, or ``images/`` for all.
        train, val: the names of the splits, of which ``annotations/instances_<split>.json`` has the annotations.
        augment: the augmentation of training images: ``mirror`` only, ``ssd`` or ``pytorch_ssd`` as SSD does it,
            or ``none``.
        crop: side of a training image with ``augment=ssd`` or ``pytorch_ssd``.
        without_area: whether to refuse or drop boxes without area; COCO's training split has a few.
        keep_empty: whether training uses images without an object to learn.
        name: the name of the data if they are not COCO itself; part of a run's name.
        classes: the categories to detect, in this order; those that are not named are left out. None for all, in the
            order of their ids.
        orientation: how an orientation in the EXIF data is used; see ``annotated.Orientation``.

    Raises:
        DataError: a file is missing, a split is empty, or an annotation is invalid; it names the file and the record.
    """
    base = Path(root).expanduser()
    published = orientation == "auto" and not name and {train, val} <= set(PUBLISHED)
    sides = [_side(base, split, without_area == "drop", classes) for split in (train, val)]
    if list(sides[0].classes.items()) != list(sides[1].classes.items()):
        what = f"{train} and {val} have different categories"
        raise DataError(what, base / "annotations", "make them equal")
    for side in sides:
        side.orientation = "published" if published else orientation
    look = surveyed(sides)
    names = tuple(sides[0].classes.values())
    amounts = " + ".join(str(len(side)) for side in sides)
    return scene_dataset(
        *sides,
        classes=names,
        augment=augmentation(augment, crop),
        size=crop,
        source=f"{name or 'COCO'}, {train} and {val}: {amounts} images",
        facts=[*(side.fact for side in sides), *_facts(classes, sides)],
        keep_empty=keep_empty,
        contents=lambda: look().contents,
        drawn=lambda: look().drawn(),
        notes=lambda: [*notes(sides, names), *_changes(train, sides[0]), *_changes(val, sides[1]), *look().notes()],
    )


def _facts(classes: Sequence[str] | None, sides: Sequence[Instances]) -> Iterator[bytes]:
    """What the fingerprint has beside the bytes of the files: how they are read, if not as in earlier releases."""
    if classes:
        yield repr(classes).encode()
    if any(side.tally["text"] for side in sides):  # any text counted as a crowd
        yield b"iscrowd as text"


def _changes(split: str, side: Instances) -> list[str]:
    """What was done to the annotations of a split, for the start of a run."""
    lines = [f"{split}: {side.tally['area']:,} annotations have no area; computed"] if side.tally["area"] else []
    other = {name.removeprefix("of "): number for name, number in side.tally.items() if name.startswith("of ")}
    left = ", ".join(f"{name} {number:,}" for name, number in sorted(other.items()))
    lines += [f"{split}: left out, not in dataset.classes: {left}"] if left else []
    return lines


@dataclass(frozen=True)
class Outlined(Record):
    """A record whose segmentations are kept as JSON, to save memory.

    Attributes:
        outlines: None if an annotation has none.
        some: whether another annotation has one, though.
    """

    outlines: bytes | None
    some: bool = False


class Instances(Annotated):
    """Image files with COCO's annotations.

    Attributes:
        classes: category names by id; a label is a position in this order.
        fact: the bytes that the fingerprint is computed over.
        tally: how many annotations had no area (``area``), or another class (``of <name>``).
    """

    records: Sequence[Outlined]

    def __init__(self, records: Sequence[Outlined], classes: dict[int, str], fact: bytes, tally: Counter[str]) -> None:
        super().__init__(records)
        self.classes, self.fact, self.tally = classes, fact, tally

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of an image, with masks if ``masks`` is true and the annotations have segmentations."""
        record = self.records[index]
        if record.outlines is None or not masks:
            return record.objects
        drawn = [mask(outline, record.height, record.width) for outline in json.loads(record.outlines)]
        empty = np.zeros((0, record.height, record.width), dtype=np.uint8)
        return replace(record.objects, masks=np.stack(drawn) if drawn else empty)

    def unmasked(self) -> Path | None:
        """The first image with an annotation that has no segmentation; None if there is none."""
        return next((record.image for record in self.records if record.outlines is None), None)


@dataclass
class Reading:
    """How the records of a split are read.

    Attributes:
        path: the instances file.
        folder: the folder of the images.
        classes: category names by id, of those that are used.
        left: category names by id, of those that are left out.
        drop: whether boxes without area are dropped.
    """

    path: Path
    folder: Path
    split: str
    classes: dict[int, str]
    left: dict[int, str]
    drop: bool
    tally: Counter[str] = field(default_factory=Counter)
    listed: set[str] = field(default_factory=set)

    def annotation(self, item: Mapping[str, Any]) -> str:
        """Where an annotation is, for messages."""
        return f"{self.path}: annotation {item.get('id')}"


def _side(base: Path, split: str, drop: bool, chosen: Sequence[str] | None) -> Instances:
    path, content, parsed = _parsed(base, split)
    reading = _reading(base, split, path, parsed, drop, chosen)
    return Instances(sound(_each(parsed, reading)), reading.classes, content, reading.tally)


def _reading(
    base: Path, split: str, path: Path, parsed: dict[str, Any], drop: bool, chosen: Sequence[str] | None
) -> Reading:
    every = _classes(parsed, path)
    if chosen is None:
        return Reading(path, _folder(base, split), split, every, {}, drop)
    number = {name: identity for identity, name in every.items()}
    for name in chosen:
        if name not in number:
            raise DataError(f"{name} is not among the categories", path, nearest(name, list(number)))
    classes = {number[name]: name for name in chosen}
    left = {identity: name for identity, name in every.items() if identity not in classes}
    return Reading(path, _folder(base, split), split, classes, left, drop)


def _folder(base: Path, split: str) -> Path:
    """The folder of a split's images: with the split's name, also below ``images/``, or ``images/`` itself."""
    places = (base / split, base / "images" / split, base / "images")
    return next((place for place in places if place.is_dir()), places[0])


def check(root: Path, seen: Seen, threads: int) -> Iterator[Finding | About]:
    """All problems in a COCO folder: in its instances files, their annotations and images."""
    names = splits(root)
    if not names:
        yield Finding("annotations", f"no instances_*.json here: {contents(root / 'annotations')}")
    abouts: list[About | Finding] = []
    yield from findings(root, {name: _items(root, name, abouts) for name in names}, seen, threads, is_leak)
    yield from abouts


def count(root: Path) -> int:
    """The number of files in the splits' image folders."""
    folders = {_folder(root, name) for name in splits(root)}
    return sum(len(files) for folder in folders for _, _, files in os.walk(folder))


def splits(root: Path) -> list[str]:
    """The splits that have an instances file."""
    return sorted(path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json"))


def _items(base: Path, split: str, abouts: list[About | Finding]) -> Iterator[Outlined | DataError]:
    """Each record of a split or the error in it; lines about the whole are added to ``abouts``."""
    try:
        path, _, parsed = _parsed(base, split)
        reading = _reading(base, split, path, parsed, False, None)
    except DataError as error:
        yield error
        return
    records = []
    for item in _each(parsed, reading):
        if isinstance(item, Outlined):
            records.append(item)
        yield item
    masked = sum(record.outlines is not None and len(record.objects) > 0 for record in records)
    for record in records:
        if record.outlines is None and (masked or record.some):
            what = f"{'some objects have' if record.some else 'no object has'} a mask: not for detectors of masks"
            abouts.append(Finding(str(record.image.relative_to(base)), what, harmless=True))
    abouts.append(About(counts(split, records, list(reading.classes.values()))))
    abouts += map(About, _changes(split, Instances(records, reading.classes, b"", reading.tally)))


def _parsed(base: Path, split: str) -> tuple[Path, bytes, dict[str, Any]]:
    """An instances file: its path, its bytes and its parsed contents."""
    path = base / "annotations" / f"instances_{split}.json"
    try:
        content = path.read_bytes()
        parsed = json.loads(content)
    except OSError as error:
        known = splits(base)
        todo = how_to_convert(base) or "set dataset.root to the folder that holds annotations/"
        if known:
            todo = f"set dataset.train and dataset.val: there are {', '.join(known)}"
        raise DataError(f"the annotations cannot be read: {error.strerror}; {contents(base)}", path, todo) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the annotations are not JSON: {error}", path, "restore the file") from error
    for key in ("images", "annotations", "categories"):
        entries = parsed.get(key) if isinstance(parsed, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"the annotations have no list of {key}", path, "restore the file")
    return path, content, parsed


def _classes(parsed: dict[str, Any], path: Path) -> dict[int, str]:
    try:
        listed = [(int(c["id"]), str(c["name"])) for c in sorted(parsed["categories"], key=lambda c: c["id"])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a category without id or name: {error}", path, "repair it") from error
    if not listed:
        raise DataError("the annotations have no category", path, "restore the file")
    for what, values in (("id", [i for i, _ in listed]), ("name", [name for _, name in listed])):
        if twice := [value for value, number in Counter(values).items() if number > 1]:
            raise DataError(f"two categories with the {what} {twice[0]}", path, "give each its own")
    return dict(listed)


def _each(parsed: dict[str, Any], reading: Reading) -> Iterator[Outlined | DataError]:
    """The record of each image, in the order of ids, or the error in it."""
    path = reading.path
    try:
        reading.listed = {entry.name for entry in os.scandir(reading.folder)}
    except OSError as error:
        yield DataError(f"the images cannot be listed: {error.strerror}", reading.folder, "restore the folder")
        return
    images, grouped = _grouped(parsed, path)
    yield from _twice(parsed["images"], path)
    for item in grouped.pop(None, []):
        what = f"image {item.get('image_id')} of this annotation is not among the images"
        yield DataError(what, reading.annotation(item), "restore the file")
    for number, image in images.items():
        try:
            yield _record(image, grouped.get(number, []), reading)
        except DataError as error:
            yield error
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            yield DataError(f"this record is incomplete: {error!r}", f"{path}: image {number}", "repair it")


def _twice(images: Sequence[Mapping[str, Any]], path: Path) -> Iterator[DataError]:
    """Ids and file names that more than one image has."""
    for key, todo in (("id", "give each its own"), ("file_name", "merge their annotations")):
        for value, number in Counter(repr(image[key]) for image in images if key in image).items():
            if number > 1:
                yield DataError(f"{number} images with the {key} {value}", path, todo)


def _grouped(parsed: dict[str, Any], path: Path) -> tuple[dict[Any, Any], dict[Any, list[dict[str, Any]]]]:
    """Images by id, and annotations by image id; annotations without an image are under None."""
    try:
        images = {image["id"]: image for image in sorted(parsed["images"], key=lambda image: image["id"])}
    except (KeyError, TypeError) as error:
        raise DataError(f"an image without an id: {error!r}", path, "repair it") from error
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for item in parsed["annotations"]:
        number = item.get("image_id")
        known = isinstance(number, (int, str)) and number in images
        grouped.setdefault(number if known else None, []).append(item)
    return images, grouped


def _record(image: Mapping[str, Any], items: list[dict[str, Any]], reading: Reading) -> Outlined:
    where = f"{reading.path}: image {image['id']}"
    file = _file(str(image["file_name"]), reading)
    width, height = size_of(float(image["width"]), float(image["height"]), where)
    kept, boxes, labels = [], [], []
    order = {number: label for label, number in enumerate(reading.classes)}
    for item in items:
        category = item["category_id"]
        if category in reading.left:
            reading.tally[f"of {reading.left[category]}"] += 1
            continue
        try:
            left, top, w, h = map(float, item["bbox"])
            boxes.append(checked_box((left, top, left + w, top + h), width, height, reading.annotation(item)))
        except NoArea as error:
            if not reading.drop:
                raise DataError(error.what, error.where, "remove it, or use dataset.without_area=drop") from None
            continue
        if category not in order:
            what = f"category {category} is not among the categories"
            raise DataError(what, reading.annotation(item), "repair it")
        kept.append(item)
        labels.append(order[category])
    outlines = [
        checked_outline(item["segmentation"], box, width, height, reading.annotation(item))
        for item, box in zip(kept, boxes, strict=True)
        if item.get("segmentation")
    ]
    areas = np.array([_area(item, box, width, height, reading) for item, box in zip(kept, boxes, strict=True)])
    crowd = [flag(item.get("iscrowd", 0), "iscrowd", reading.annotation(item)) for item in kept]
    reading.tally["text"] += sum(isinstance(item.get("iscrowd"), str) for item in kept)
    objects = boxed(boxes, labels, areas=areas, crowd=np.array(crowd, dtype=bool))
    masked = json.dumps(outlines).encode() if len(outlines) == len(kept) else None
    return Outlined(file, width, height, objects, masked, 0 < len(outlines) < len(kept))


def _file(name: str, reading: Reading) -> Path:
    """The file of an image: below the split's folder, also in further folders, or below the folder that holds it.

    Raises:
        DataError: it is missing, or outside of the data set.
    """
    if name in reading.listed:
        return reading.folder / name
    path = os.path.normpath(name.replace("\\", "/"))
    if os.path.isabs(path) or path.startswith(".."):
        raise DataError(f"a file name outside of the data set: {name}", reading.path, "give a path below the folder")
    bases = [reading.folder, reading.folder.parent]
    for found in (base / path for base in bases):
        if found.is_file():
            return found
    raise DataError("this image is missing", reading.folder / name, "restore it")


def _area(item: Mapping[str, Any], box: Sequence[float], width: int, height: int, reading: Reading) -> float:
    """An annotation's area: the given one, or that of its mask or else its box, as pycocotools computes it.

    Raises:
        DataError: the given one is not an area.
    """
    if item.get("area") is None:
        reading.tally["area"] += 1
        if item.get("segmentation"):
            return area(item["segmentation"], height, width)
        return (box[2] - box[0]) * (box[3] - box[1])
    given = item["area"]
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < 1e12:
        raise DataError(f"area is {given!r}", reading.annotation(item), "correct it, or leave it out")
    return float(given)
