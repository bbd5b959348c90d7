"""A shard: a tar file in WebDataset's form, with an index of its images beside it.

``train-000000.tar`` holds two members for each image: ``<key>.jpg`` (or another suffix), its bytes, and ``<key>.cls``,
the number of its class. A key is the number of the image in its split. ``train-000000.json`` has the position, length,
name, class and CRC-32 of each image, in the form that webshart reads. The index is written before the tar file gets its
name, so a tar file that is there is complete.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from attnbench.base import files
from attnbench.base.errors import DataError
from attnbench.data.images.formats import format_of
from attnbench.data.images.suffixes import FORMAT_OF

FORMAT = "attnbench shards 2"
TODO = "write it again with attnbench data shard"
SAFE = re.compile(r"\w[\w.-]*")  # a name in the same folder
BLOCK = tarfile.BLOCKSIZE
SUFFIX = {".jpeg": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}  # what readers of tar files look for
PIECE = 2**22  # bytes read at once to check a whole file


@dataclass(frozen=True)
class Shard:
    """Where the images of a shard are.

    Attributes:
        path: the file that holds their bytes.
        made_of: see ``sharding.Planned``.
        starts: the position at which each image begins, int64 (N,).
        ends: the position at which each image ends, int64 (N,).
        checksums: CRC-32 of each image, uint32 (N,).
        names: ``class/name`` of each image.
        whole: CRC-32 of the whole file; None if it has no other contents than these images and their index.
    """

    path: Path
    made_of: str
    starts: np.ndarray
    ends: np.ndarray
    checksums: np.ndarray
    names: list[str]
    whole: int | None = None


def write_shard(
    file: IO[bytes], name: str, about: dict[str, Any], first: int, images: Iterable[tuple[str, int, bytes]]
) -> bytes:
    """Write a shard into an open file; returns its index, which belongs beside it.

    Args:
        name: what the file is called in the end.
        about: more facts for the index.
        first: the number of the first image in its split.
        images: ``class/name``, the number of the class, and the bytes of each image.
    """
    entries: dict[str, dict[str, Any]] = {}
    at = whole = 0
    for number, (image, label, data) in enumerate(images, first):
        key = f"{number:09}"
        member = f"{key}{_suffix(image, data)}"
        place = {"offset": at + BLOCK, "length": len(data), "crc32": zlib.crc32(data), "name": image, "label": label}
        entries[member] = place
        both = _member(member, data) + _member(f"{key}.cls", b"%d" % label)
        file.write(both)
        at, whole = at + len(both), zlib.crc32(both, whole)
    end = bytes(2 * BLOCK)
    file.write(end)
    head = {"path": name, "filesize": at + len(end), "crc32": zlib.crc32(end, whole), **about}
    lines = ",\n".join(f"{json.dumps(member)}:{json.dumps(entry)}" for member, entry in entries.items())
    return (json.dumps(head)[:-1] + ', "files": {\n' + lines + "\n}}\n").encode()


def _suffix(name: str, data: bytes) -> str:
    """The suffix of an image in a tar file: by its name, or by its first bytes if its name has none that is known."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in FORMAT_OF:
        kind = format_of(data)
        suffix = next((one for one, known in FORMAT_OF.items() if known == kind), ".bin")
    return SUFFIX.get(suffix, suffix)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def index_of(path: Path) -> Path:
    """The index of a tar file."""
    return path.with_suffix(".json")


def read_shard(path: Path, sha256: str | None = None) -> Shard:
    """Read the index of a shard.

    Args:
        sha256: the hash of the index, if it is known.

    Raises:
        DataError: the shard or its index is missing, cut off or damaged, or is a link.
    """
    index = index_of(path)
    refuse_links(path, index)
    try:
        size, text = path.stat().st_size, index.read_bytes()
    except OSError as error:
        where = error.filename or path
        raise DataError(f"this shard cannot be read: {error.strerror}", where, TODO) from error
    if sha256 is not None and files.sha256(index) != sha256:
        raise DataError("this is not the index that shards.json names, or it is damaged", index, TODO)
    try:
        shard, stated = _parsed(path, json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError("the index of this shard is damaged", index, TODO) from error
    if size != stated or (len(shard.names) and not 0 <= shard.starts.min() <= shard.ends.max() <= size):
        raise DataError(f"this shard is cut off or damaged: {size:,} bytes instead of {stated:,}", path, TODO)
    return shard


def _parsed(path: Path, index: dict[str, Any]) -> tuple[Shard, int]:
    """A shard, and its size in bytes as the index tells it."""
    entries = list(index["files"].values())
    starts = np.array([entry["offset"] for entry in entries], np.int64)
    ends = starts + np.array([entry["length"] for entry in entries], np.int64)
    checksums = np.array([entry["crc32"] for entry in entries], np.uint32)
    names = [str(entry["name"]) for entry in entries]
    shard = Shard(path, str(index["made_of"]), starts, ends, checksums, names, int(index["crc32"]))
    return shard, int(index["filesize"])


def refuse_links(*paths: Path) -> None:
    """Refuse links: a folder of shards names nothing outside itself.

    Raises:
        DataError: one of the files is a link.
    """
    for path in paths:
        if path.is_symlink():
            raise DataError("this shard is a link", path, "put the file itself there")


def beside(root: Path, name: Any) -> Path:
    """A file in a folder, by the name that an index gives it.

    Raises:
        DataError: the name leads out of the folder.
    """
    if not isinstance(name, str) or not SAFE.fullmatch(name):
        raise DataError(f"this index names a file outside its folder: {name}", root / "shards.json", TODO)
    return root / name


def is_whole(shard: Shard) -> bool:
    """Whether all bytes of a file are those that were written, not only those of its images.

    Raises:
        DataError: it cannot be read.
    """
    if shard.whole is None:
        return True
    checksum = 0
    try:
        with open(shard.path, "rb") as file:
            while piece := file.read(PIECE):
                checksum = zlib.crc32(piece, checksum)
    except OSError as error:
        raise DataError(f"this shard cannot be read: {error.strerror}", shard.path, TODO) from error
    return checksum == shard.whole
