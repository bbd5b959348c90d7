"""Image files with annotations: the code that VOC and COCO share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from attnbench.base.errors import DataError
from attnbench.data.detection.scenes import Objects
from attnbench.data.images.checking import Finding, Picture, Seen, examine
from attnbench.data.images.contents import digest
from attnbench.data.images.pillow import load_rgb, other_size, read_file


@dataclass(frozen=True)
class Record:
    """An image's file, and the size and objects that its annotation gives."""

    image: Path
    width: int
    height: int
    objects: Objects


class Annotated:
    """Image files with records of the objects in them."""

    in_memory = False

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

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
        image, annotated = load_rgb(record.image), (record.width, record.height)
        if image.size != annotated:
            raise DataError(other_size(image.size, annotated), record.image, "restore the file")
        return np.array(image)

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The annotated objects; see ``Source``."""
        return self.records[index].objects

    def unmasked(self) -> Path | None:
        """The first image, since these annotations have no masks."""
        return self.records[0].image


def pictures_digest(sides: Sequence[Annotated]) -> str:
    """A hash over the contents of the image files of some splits; see ``Dataset.contents``.

    Raises:
        DataError: a file cannot be read.
    """
    images = [record.image for side in sides for record in side.records]
    return digest([path.stat().st_size if path.exists() else 0 for path in images], lambda i: read_file(images[i]))


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
    root: Path, splits: Mapping[str, Iterable[Record | DataError]], seen: Seen, threads: int
) -> Iterator[Finding]:
    """The problems of splits: first those of records, then those of image files, each reported once over all splits."""
    reported: set[Finding] = set()
    kept: dict[Path, tuple[str, Record]] = {}
    for split, items in splits.items():
        empty = True
        for item in items:
            empty = False
            if isinstance(item, Record):
                kept.setdefault(item.image, (split, item))
            elif (found := _finding(root, item)) not in reported:
                reported.add(found)
                yield found
        if empty:
            yield Finding(split, "this split is empty")
    pictures = (
        Picture(_below(root, path), split, partial(read_file, path), (record.width, record.height))
        for path, (split, record) in kept.items()
    )
    yield from examine(pictures, seen, threads)


def _finding(root: Path, error: DataError) -> Finding:
    return Finding(_below(root, error.where), "; ".join(filter(None, (error.what, error.todo))))


def _below(root: Path, where: Path | str) -> str:
    return str(where).removeprefix(f"{root}/")
