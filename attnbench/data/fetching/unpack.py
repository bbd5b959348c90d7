"""Unpacks archives from elsewhere: regular files below one folder, no links, no more than a limit."""

from __future__ import annotations

import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from attnbench.base import files
from attnbench.base.errors import DataError

PIECE = 2**20
MOST_FILES = 3_000_000
MOST_BYTES = 400 * 2**30  # of one archive, unpacked: twice ImageNet's and more
RATIO = 200  # a larger ratio of unpacked to packed bytes is not one of pictures
SPACE = "make space, or choose another folder"
TODO = "transfer it again, or use another copy"
CUT_OFF = re.compile("unexpected end|end-of-stream|truncated|empty header", re.I)  # what the libraries call it


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    Attributes:
        path: its path, with ``/``.
        size: its size in bytes.
        open: opens it for reading.
    """

    path: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, target: Path, strip: str | None, seen: Callable[[int], object]) -> None:
    """Unpack a tar or zip file into a folder, in which nothing of it may be yet.

    Args:
        strip: a folder in the archive that is left out of paths; files outside it are left out.
        seen: called with the size in bytes of each file that is unpacked.

    Raises:
        DataError: the archive is damaged, or holds a link, a path out of the folder, or too much.
        StorageError: a file cannot be written.
    """
    for member in members(archive):
        path = member.path
        if strip is not None:
            if not path.startswith(f"{strip}/"):
                continue
            path = path.removeprefix(f"{strip}/")
        write(member, target / path, archive)
        seen(member.size)


def write(member: Member, path: Path, archive: Path) -> None:
    """Write a member's contents into a new file.

    Raises:
        DataError: the archive is damaged, or has the path twice.
        StorageError: the file cannot be written.
    """
    with files.changing(path, SPACE):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise DataError(f"it has {member.path} twice", archive, TODO)
    with reading(archive), member.open() as source, _new(path) as file:
        left = member.size
        while left:
            piece = source.read(min(PIECE, left))
            if not piece:
                raise DataError(f"this archive is cut off in {member.path}", archive, TODO)
            left -= len(piece)
            with files.changing(path, SPACE):
                file.write(piece)
        if source.read(1):
            raise DataError(f"{member.path} is larger than the archive says", archive, TODO)


@contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    with files.changing(path, SPACE):
        file = open(path, "xb")  # noqa: SIM115 - closed below
    try:
        yield file
    finally:
        with files.changing(path, SPACE):
            file.close()


def members(archive: Path) -> Iterator[Member]:
    """The regular files in a tar or zip file, in order; each is to be read before the next one.

    Raises:
        DataError: the archive is damaged, or holds a link, a path out of the folder, or too much.
    """
    with reading(archive):
        packed = archive.stat().st_size
        is_zip = zipfile.is_zipfile(archive)
        if not is_zip and not tarfile.is_tarfile(archive):
            raise DataError("this is neither a tar nor a zip file, or it is cut off", archive, TODO)
        listed = _of_zip(archive) if is_zip else _of_tar(archive)
    count = total = 0
    while True:
        with reading(archive):
            member = next(listed, None)
        if member is None:
            return
        count, total = count + 1, total + member.size
        if count > MOST_FILES or total > min(MOST_BYTES, RATIO * packed + 2**20):
            raise DataError(f"it unpacks to too much: {count:,} files, {total:,} bytes", archive, TODO)
        yield member


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Turn errors of a damaged archive into a DataError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"this archive cannot be read: {error.strerror}", archive, "check the disk") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        what = "this archive is cut off" if CUT_OFF.search(reason) else f"this archive is damaged: {reason}"
        raise DataError(what, archive, TODO) from error


def _of_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:*") as tar:
        for one in tar:
            path = _safe(one.name, archive)
            if one.isdir():
                continue
            if not one.isreg():
                raise DataError(f"it holds a link or a special file: {one.name}", archive, TODO)

            def opened(one: tarfile.TarInfo = one) -> IO[bytes]:
                found = tar.extractfile(one)
                assert found is not None
                return found

            yield Member(path, one.size, opened)
            tar.members = []  # type: ignore[attr-defined] # otherwise it keeps a record of every file


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for one in packed.infolist():
            path = _safe(one.filename, archive)
            kind = stat.S_IFMT(one.external_attr >> 16)
            if one.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                raise DataError(f"it holds a link or a special file: {one.filename}", archive, TODO)

            def opened(one: zipfile.ZipInfo = one) -> IO[bytes]:
                return packed.open(one)

            yield Member(path, one.file_size, opened)


def _safe(name: str, archive: Path) -> str:
    """The path of a member, without ``./``.

    Raises:
        DataError: it leads out of the folder.
    """
    parts = [part for part in name.rstrip("/").split("/") if part != "."]
    odd = any(part in ("", "..") or "\\" in part or "\0" in part or os.fsencode(part)[-1:] == b":" for part in parts)
    if odd or name.startswith("/") or (parts and len(parts[0]) > 1 and parts[0][1] == ":"):
        raise DataError(f"it holds a path out of its folder: {name}", archive, TODO)
    return "/".join(parts)
