"""Image files with annotations: the code that VOC and COCO share."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.detection.scenes import Objects
from attnbench.data.images import formats
from attnbench.data.images.checking import Finding, Picture, Seen, examine
from attnbench.data.images.formats import Facts, facts
from attnbench.data.images.pillow import LARGEST, other_size, read_file, read_rgb
from attnbench.data.images.survey import Survey, Turn, survey

LISTED = 12  # classes whose objects are counted one by one

# How the EXIF orientation of a picture is used: as its annotation's size tells, or always, or never. If the size does
# not tell, since the picture is square or upside down, ``auto`` turns it.
Orientation = Literal["auto", "upright", "stored"]


@dataclass(frozen=True)
class Record:
    """An image's file, and the size and objects that its annotation gives."""

    image: Path
    width: int
    height: int
    objects: Objects


class Annotated:
    """Image files with records of the objects in them.

    Args:
        orientation: see ``Orientation``; ``published`` is ``auto`` for a published data set, whose pictures are drawn
            as stored if their sizes do not tell.
    """

    in_memory = False

    def __init__(self, records: Sequence[Record], orientation: Orientation | Literal["published"] = "auto") -> None:
        self.records, self.orientation = records, orientation

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """The name of an image's file."""
        return self.records[index].image.name

    def image(self, index: int) -> np.ndarray:
        """An image, uint8 (H, W, 3); grey images are converted to RGB.

        Raises:
            DataError: the file cannot be read, or its size differs from the annotation's.
        """
        record = self.records[index]
        data = read_file(record.image)
        about = facts(data)
        image = read_rgb(data, record.image)
        if about.orientation > 1 and self.turn(record, image.size, about) in ("by size", "turned"):
            image = formats.turned(image, about.orientation)
        if image.size != (record.width, record.height):
            what, todo = other_size(image.size, (record.width, record.height)), "restore the file"
            if about.orientation > 1:
                what += f"; its EXIF orientation is {about.orientation}"
                todo = "repair the annotation, or see dataset.orientation"
            raise DataError(what, record.image, todo)
        return np.array(image)

    def turn(self, record: Record, stored: tuple[int, int], about: Facts) -> Turn:
        """What is done about the orientation of a picture with this size as stored."""
        if self.orientation == "stored":
            return "stored"
        upright = stored[::-1] if about.orientation in formats.SWAPPING else stored
        annotated = record.width, record.height
        if annotated == upright != stored:
            return "by size"
        if annotated == stored != upright and self.orientation != "upright":
            return "stored"
        return "stored" if self.orientation == "published" else "turned"

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The annotated objects; see ``Source``."""
        return self.records[index].objects

    def unmasked(self) -> Path | None:
        """The first image, since these annotations have no masks."""
        return self.records[0].image


def surveyed(sides: Sequence[Annotated]) -> Callable[[], Survey]:
    """A function that looks at the image files of some splits once; see ``Dataset.contents``.

    It raises a DataError if a file cannot be read.
    """
    of = [(side, record) for side in sides for record in side.records]

    def turn(number: int, data: bytes, about: Facts) -> Turn:
        side, record = of[number]
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
        swapped = about.format == "TIFF" and about.orientation in formats.SWAPPING  # Pillow turns it
        return side.turn(record, size[::-1] if swapped else size, about)

    def size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    def look() -> Survey:
        sizes = [size(record.image) for _, record in of]
        return survey(sizes, lambda i: read_file(of[i][1].image), lambda i: str(of[i][1].image), turn)

    return cache(look)


def counts(what: str, records: Iterable[Record], classes: Sequence[str]) -> str:
    """The pictures and the objects of each class in a split, as a line."""
    number, pictures = Counter[int](), 0
    for record in records:
        pictures += 1
        number.update(record.objects.labels.tolist())
    head = f"{what}: {pictures:,} pictures, {number.total():,} objects"
    if len(classes) <= LISTED:
        return f"{head}: " + ", ".join(f"{name} {number[label]:,}" for label, name in enumerate(classes))
    lacking = [name for label, name in enumerate(classes) if not number[label]]
    more = f" and {len(lacking) - LISTED:,} more" if len(lacking) > LISTED else ""
    none = f", none of {', '.join(lacking[:LISTED])}{more}" if lacking else ""
    return f"{head} of {len(number):,} classes{none}"


def notes(sides: Sequence[Annotated], classes: Sequence[str]) -> list[str]:
    """Lines for the start of a run: objects of each class, and pictures that are in both splits."""
    train, val = sides
    both = {record.image for record in train.records} & {record.image for record in val.records}
    lines = [counts("training", train.records, classes), counts("validation", val.records, classes)]
    return lines + [f"{len(both):,} pictures are in training and in validation"] * bool(both)


Known = TypeVar("Known", bound=Record)


def sound(items: Iterable[Known | DataError]) -> list[Known]:
    """The records of a split without problems.

    Raises:
        DataError: the first problem, if there is one.
    """
    records = []
    for item in items:
        if isinstance(item, DataError):
            raise item
        records.append(item)
    return records


def findings(
    root: Path,
    splits: Mapping[str, Iterable[Record | DataError]],
    seen: Seen,
    threads: int,
    leaks: Callable[[str, str], bool],
) -> Iterator[Finding]:
    """The problems of splits: first those of records, then those of image files, each reported once over all splits.

    Args:
        leaks: whether two splits should have no picture in common.
    """
    reported: set[Finding] = set()
    kept: dict[Path, tuple[str, Record]] = {}
    for split, items in splits.items():
        empty = True
        for item in items:
            empty = False
            found = None
            if not isinstance(item, Record):
                found = _finding(root, item)
            elif leaks(first := kept.setdefault(item.image, (split, item))[0], split):
                found = Finding(_below(root, item.image), f"this picture is in {first} and in {split}")
            if found and found not in reported:
                reported.add(found)
                yield found
        if empty:
            yield Finding(split, "this split is empty")
    pictures = (
        Picture(_below(root, path), split, partial(read_file, path), (record.width, record.height))
        for path, (split, record) in kept.items()
    )
    yield from examine(pictures, seen, threads)


def is_leak(one: str, other: str) -> bool:
    """Whether two splits should have no picture in common: by their names, one is for training and one is not."""
    names = [split.rpartition("/")[2] for split in (one, other)]
    trains = [name.startswith("train") for name in names]
    if trains[0] == trains[1]:
        return False
    train, held = names if trains[0] else names[::-1]
    return held.startswith("test") or (held.startswith("val") and not train.startswith("trainval"))


def _finding(root: Path, error: DataError) -> Finding:
    return Finding(_below(root, error.where), "; ".join(filter(None, (error.what, error.todo))))


def _below(root: Path, where: Path | str) -> str:
    return str(where).removeprefix(f"{root}/")


def size_of(width: float, height: float, where: object) -> tuple[int, int]:
    """An annotated size, checked.

    Raises:
        DataError: it is not that of a picture.
    """
    if not (width >= 1 and height >= 1 and width * height <= LARGEST):
        what = f"the annotation gives a size of {width:g}x{height:g}"
        raise DataError(what, where, "write the picture's width and height into it")
    return int(width), int(height)


FLAGS = {"0": False, "1": True, "false": False, "true": True}


def flag(value: object, name: str, where: object) -> bool:
    """A flag that is written as 0, 1, true or false, also as text.

    Raises:
        DataError: it is something else.
    """
    text = str(int(value) if value in (0, 1) else value).strip().lower()
    if text not in FLAGS:
        raise DataError(f"{name} is {value!r}", where, "use 0 or 1")
    return FLAGS[text]
