"""Shards as release 0.1.0 wrote them. They are read, and no longer written; ``attnbench data shard`` converts them.

Such a shard is one file:

    the bytes of all images, one after another
    the index:
        a line of JSON: the number of images, their split, and a hash of what they were made from
        for all images: end positions (uint64), CRC-32 (uint32), and names, separated by NUL
    a footer of 32 bytes: position, length and CRC-32 of the index, and the format's name

Numbers are little-endian.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from attnbench.base.errors import DataError
from attnbench.data.image_folders.tar_shards import TODO, Shard

FORMAT = "attnbench shards 1"
FOOTER = struct.Struct("<QII16s")
MAGIC = b"attnbench-shard1"


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
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    checksums = np.frombuffer(rest, "<u4", n, 8 * n)
    names = [os.fsdecode(name) for name in rest[12 * n :].split(b"\0")]
    return Shard(path, about["made_of"], starts, ends, checksums, names)
