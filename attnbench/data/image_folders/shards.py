"""Image folders packed into a few large files, with a checksum for every image.

``DST/shards.json`` lists the shards. It is written last, so a folder that has it is complete. Shards are tar files
with an index (``tar_shards``), or those of an earlier release (``earlier_shards``). An image keeps its name and, unless
it was resized, its bytes. So shards have the same fingerprint as the folder that they were made from, and a run may
continue with either.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.base import files
from attnbench.base.errors import DataError
from attnbench.data.image_folders import earlier_shards
from attnbench.data.image_folders.folder import Side
from attnbench.data.image_folders.tar_shards import FORMAT, TODO, Shard, beside, read_shard

INDEX = "shards.json"
UNFINISHED = ("*.shard", ".*.shard.tmp", f"train-{'[0-9]' * 6}.json", ".train-*.tar.tmp")  # what a stopped call leaves
OPEN_FILES = 256  # maximum number of open shards in a process
READING = threading.Lock()  # threads share the open files; worker processes have their own


def are_here(root: Path) -> bool:
    """Whether a folder contains shards, finished or not."""
    return (root / INDEX).is_file() or any(any(root.glob(kind)) for kind in UNFINISHED)


@dataclass(frozen=True)
class Sharded:
    """One side of a data set in shards.

    Attributes:
        side: its images, as in an image folder.
        shards: the shards that hold them, in the same order.
    """

    side: Side
    shards: list[Shard]


@dataclass(frozen=True)
class Contents:
    """A data set in shards.

    Attributes:
        changed: how the images were changed; empty if they have the bytes of the image folder.
        earlier: whether the shards are those of an earlier release.
    """

    classes: tuple[str, ...]
    train: Sharded
    val: Sharded
    changed: str
    earlier: bool


def open_shards(root: Path) -> Contents:
    """Open the data set in a folder of shards.

    Raises:
        DataError: the shards are unfinished, or one is missing or damaged.
    """
    if not (root / INDEX).is_file():
        todo = "run the same attnbench data shard command again; it continues"
        raise DataError("these shards are unfinished", root, todo)
    index = files.read_json(root / INDEX)
    if not isinstance(index, dict) or index.get("format") not in (FORMAT, earlier_shards.FORMAT):
        raise DataError(f"this is not an index of {FORMAT}", root / INDEX, TODO)
    earlier = index["format"] == earlier_shards.FORMAT
    try:
        classes, changed = tuple(index["classes"]), index["changed"]
        train, val = (_side(root, name, index["sides"][name], classes, earlier) for name in ("train", "val"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"this index is damaged: {error!r}", root / INDEX, TODO) from error
    return Contents(classes, train, val, changed, earlier)


def _side(root: Path, name: str, listed: Sequence[dict[str, Any]], classes: tuple[str, ...], earlier: bool) -> Sharded:
    number = {name: label for label, name in enumerate(classes)}
    side, shards = Side(root / name, [], [], []), []
    for one in listed:
        path = beside(root, one["file"])
        shard = earlier_shards.read_shard(path) if earlier else read_shard(path, one["sha256"])
        if shard.made_of != one["made_of"]:
            raise DataError("this is not the shard that the index names", shard.path, TODO)
        side.files.extend(shard.names)
        side.labels.extend(number[name.partition("/")[0]] for name in shard.names)
        side.bytes.extend((shard.ends - shard.starts).tolist())
        shards.append(shard)
    return Sharded(side, shards)


class Shards:
    """Images in shards; see ``attnbench.data.images.files.Records``.

    Images are read by position, so that worker processes can share the open files. Each read checks the checksum.
    """

    def __init__(self, sharded: Sharded) -> None:
        self.open: OrderedDict[int, int] = OrderedDict()
        shards = sharded.shards
        self.place = sharded.side.folder.parent
        self.labels = np.array(sharded.side.labels)
        self.paths = [shard.path for shard in shards]
        self.shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self.starts = np.concatenate([shard.starts for shard in shards])
        self.ends = np.concatenate([shard.ends for shard in shards])
        self.checksums = np.concatenate([shard.checksums for shard in shards])
        self.names = np.array([os.fsencode(name) for shard in shards for name in shard.names])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See ``Records.read``."""
        start, end = int(self.starts[index]), int(self.ends[index])
        try:
            with READING:
                data = os.pread(self._descriptor(int(self.shard[index])), end - start, start)
        except OSError as error:
            raise DataError(f"this record cannot be read: {error.strerror}", self.where(index), TODO) from error
        if zlib.crc32(data) != self.checksums[index]:
            raise DataError("this record is damaged: its checksum is wrong", self.where(index), TODO)
        return data

    def where(self, index: int) -> str:
        """The shard of an image, its number in the shard, and its name."""
        shard = int(self.shard[index])
        record = index - int(np.searchsorted(self.shard, shard))
        return f"{self.paths[shard]}, record {record}: {self.name(index)}"

    def name(self, index: int) -> str:
        """See ``Records.name``."""
        return os.fsdecode(self.names[index])

    def _descriptor(self, shard: int) -> int:
        """An open file; the least recently used one is closed if too many are open."""
        if shard in self.open:
            self.open.move_to_end(shard)
        else:
            while len(self.open) >= OPEN_FILES:
                os.close(self.open.popitem(last=False)[1])
            self.open[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return self.open[shard]

    def __del__(self) -> None:
        for descriptor in self.open.values():
            os.close(descriptor)
