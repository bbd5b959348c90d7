"""Image folders packed into a few large files, with a checksum for every image.

``DST/shards.json`` lists the shards. It is written last, so a folder that has it is complete. A shard is one file:

    the bytes of all images, one after another
    the index:
        a line of JSON: the number of images, their split, and a hash of what they were made from
        for all images: end positions (uint64), CRC-32 (uint32), and names, separated by NUL
    a footer of 32 bytes: position, length and CRC-32 of the index, and the format's name

Numbers are little-endian. An image keeps its name and, unless it was resized, its bytes. So shards have the same
fingerprint as the folder that they were made from, and a run may continue with either.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from attnbench.base import files
from attnbench.base.errors import DataError
from attnbench.data.image_folders.folder import Side

INDEX = "shards.json"
FORMAT = "attnbench shards 1"
FOOTER = struct.Struct("<QII16s")
MAGIC = b"attnbench-shard1"
OPEN_FILES = 256  # maximum number of open shards in a process
READING = threading.Lock()  # threads share the open files; worker processes have their own
TODO = "write it again with attnbench data shard"


@dataclass(frozen=True)
class Shard:
    """The index of a shard.

    Attributes:
        about: its line of JSON.
        ends: the position at which each image ends, int64 (N,).
        checksums: CRC-32 of each image, uint32 (N,).
        names: ``class/name`` of each image.
    """

    path: Path
    about: dict[str, Any]
    ends: np.ndarray
    checksums: np.ndarray
    names: list[str]

    @property
    def starts(self) -> np.ndarray:
        """The position at which each image begins, int64 (N,)."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)


def write_shard(file: IO[bytes], about: dict[str, Any], records: Iterable[tuple[str, bytes]]) -> None:
    """Write a shard of named images into an open file."""
    ends, checksums, names, at = [], [], [], 0
    for name, data in records:
        file.write(data)
        at += len(data)
        ends.append(at)
        checksums.append(zlib.crc32(data))
        names.append(os.fsencode(name))
    line = json.dumps({**about, "records": len(names)}, sort_keys=True).encode() + b"\n"
    arrays = np.array(ends, "<u8").tobytes() + np.array(checksums, "<u4").tobytes()
    index = line + arrays + b"\0".join(names)
    file.write(index)
    file.write(FOOTER.pack(at, len(index), zlib.crc32(index), MAGIC))


def read_shard(path: Path) -> Shard:
    """Read the index of a shard.

    Raises:
        DataError: the file is missing, cut off or damaged.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - FOOTER.size))
            start, length, checksum, magic = FOOTER.unpack(file.read().rjust(FOOTER.size))
            if magic != MAGIC or start + length + FOOTER.size != size:
                raise DataError("this shard is cut off or damaged", path, TODO)
            file.seek(start)
            index = file.read(length)
    except OSError as error:
        raise DataError(f"this shard cannot be read: {error.strerror}", path, TODO) from error
    if zlib.crc32(index) != checksum:
        raise DataError("the index of this shard is damaged", path, TODO)
    return _parsed(path, index)


def _parsed(path: Path, index: bytes) -> Shard:
    line, _, rest = index.partition(b"\n")
    about = json.loads(line)
    n = about["records"]
    ends = np.frombuffer(rest, "<u8", n).astype(np.int64)
    checksums = np.frombuffer(rest, "<u4", n, 8 * n)
    names = [os.fsdecode(name) for name in rest[12 * n :].split(b"\0")]
    return Shard(path, about, ends, checksums, names)


def are_here(root: Path) -> bool:
    """Whether a folder contains shards, finished or not."""
    return (root / INDEX).is_file() or any(any(root.glob(kind)) for kind in ("*.shard", ".*.shard.tmp"))


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
    """

    classes: tuple[str, ...]
    train: Sharded
    val: Sharded
    changed: str


def open_shards(root: Path) -> Contents:
    """Open the data set in a folder of shards.

    Raises:
        DataError: the shards are unfinished, or one is missing or damaged.
    """
    if not (root / INDEX).is_file():
        todo = "run the same attnbench data shard command again; it continues"
        raise DataError("these shards are unfinished", root, todo)
    index = files.read_json(root / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"this is not an index of {FORMAT}", root / INDEX, TODO)
    try:
        classes, changed = tuple(index["classes"]), index["changed"]
        train, val = (_side(root, name, index["sides"][name], classes) for name in ("train", "val"))
    except (KeyError, TypeError) as error:
        raise DataError(f"this index is damaged: {error!r}", root / INDEX, TODO) from error
    return Contents(classes, train, val, changed)


def _side(root: Path, name: str, files: Sequence[dict[str, Any]], classes: tuple[str, ...]) -> Sharded:
    number = {name: label for label, name in enumerate(classes)}
    side, shards = Side(root / name, [], [], []), []
    for file in files:
        shard = read_shard(root / file["file"])
        if shard.about["made_of"] != file["made_of"]:
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
