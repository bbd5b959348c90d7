"""Images in files with an annotation of each: what data sets such as VOC's and COCO's have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from attnbench.data.images import load_rgb
from attnbench.data.scenes import Objects
from attnbench.errors import DataError


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
        pixels = np.array(load_rgb(record.image))
        if pixels.shape[:2] != (record.height, record.width):
            found = f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
            what = f"this image has {found}, its annotation says {record.width}x{record.height}"
            raise DataError(what, record.image, "restore the file")
        return pixels

    def objects(self, index: int, masks: bool = True) -> Objects:
        """What the annotation says; see ``Source``."""
        return self.records[index].objects


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
