"""Images in files with an annotation of each: what data sets such as VOC's and COCO's have in common."""

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
    """An image's file and what its annotation says: its size and the objects in it."""

    image: Path
    width: int
    height: int
    objects: Objects


class Annotated:
    """Image files with records of what is in them."""

    in_memory = False

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), grey images as RGB.

        Raises:
            DataError: the file cannot be read, or has another size than its annotation says.
        """
        record = self.records[index]
        image, said = load_rgb(record.image), (record.width, record.height)
        if image.size != said:
            raise DataError(other_size(image.size, said), record.image, "restore the file")
        return np.array(image)

    def objects(self, index: int, masks: bool = True) -> Objects:
        """What the annotation says; see ``Source``."""
        return self.records[index].objects

    def unmasked(self) -> Path | None:
        """The first image: boxes are all that there is."""
        return self.records[0].image


def pictures_digest(sides: Sequence[Annotated]) -> str:
    """What the image files of some splits contain; see ``Dataset.contents``.

    Raises:
        DataError: a file cannot be read.
    """
    images = [record.image for side in sides for record in side.records]
    return digest([path.stat().st_size if path.exists() else 0 for path in images], lambda i: read_file(images[i]))


Known = TypeVar("Known", bound=Record)


def sound(items: Iterable[Known | DataError]) -> list[Known]:
    """The records of a split.

    Raises:
        DataError: the first thing that is wrong in it.
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
    """What is wrong in splits: first their records, then the image files, each once in however many splits it is."""
    said: set[Finding] = set()
    kept: dict[Path, tuple[str, Record]] = {}
    for split, items in splits.items():
        empty = True
        for item in items:
            empty = False
            if isinstance(item, Record):
                kept.setdefault(item.image, (split, item))
            elif (found := _finding(root, item)) not in said:
                said.add(found)
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
