"""Checks the images of a data set before a run reads them; each problem is a ``Finding``."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.images import jpeg
from attnbench.data.images.pillow import FORMATS, other_size, read_rgb, unreadable
from attnbench.data.images.threads import in_order

PLAIN = ("RGB", "L")
CLIPPED = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes with values above 255, which RGB clips

Seen = Callable[[], object]


@dataclass(frozen=True)
class Finding:
    """Something that a user should know about a data set.

    Attributes:
        where: a file, a folder, or a shard and a record in it.
        what: the problem.
        harmless: whether training works in spite of it; the finding is then only a note.
    """

    where: str
    what: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{'note: ' if self.harmless else ''}{self.where}: {self.what}"


@dataclass(frozen=True)
class Format:
    """A data set layout that can be checked.

    Attributes:
        is_here: whether a folder has this layout.
        size: the number of images or files that a check reads.
        check: yields the findings, given a folder, a function to call once per image or file, and a thread count.
    """

    name: str
    is_here: Callable[[Path], bool]
    size: Callable[[Path], int]
    check: Callable[[Path, Seen, int], Iterator[Finding]]


@dataclass(frozen=True)
class Picture:
    """An image to check.

    Attributes:
        where: its name in messages.
        kind: its split and class.
        read: returns its bytes, or raises a DataError.
        size: width and height according to the annotation; None without one.
    """

    where: str
    kind: str
    read: Callable[[], bytes]
    size: tuple[int, int] | None = None


def examine(pictures: Iterable[Picture], seen: Seen, threads: int) -> Iterator[Finding]:
    """The problems of each image, and images that have the same bytes as another one."""
    first: dict[bytes, tuple[str, str]] = {}
    for picture, digest, findings in in_order(_examined, pictures, threads):
        seen()
        yield from findings
        where, kind = first.setdefault(digest, (picture.where, picture.kind)) if digest else (picture.where, "")
        if where != picture.where:
            yield Finding(picture.where, f"the same bytes as {where}", harmless=kind == picture.kind)


def _examined(picture: Picture) -> tuple[Picture, bytes, list[Finding]]:
    """An image, a hash of its bytes, and its problems."""
    try:
        data = picture.read()
    except DataError as error:
        return picture, b"", [Finding(picture.where, error.what)]
    return picture, hashlib.sha256(data).digest()[:12], [*_in_bytes(data, picture)]


def _in_bytes(data: bytes, picture: Picture) -> Iterator[Finding]:
    where = picture.where
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind, mode, transparent = image.format, image.mode, image.has_transparency_data
            size = image.size
        complaint = jpeg.inspect(data)
        if complaint is None:
            read_rgb(data, where)
    except Exception as error:  # damage raises many types, as in read_rgb
        yield Finding(where, error.what if isinstance(error, DataError) else unreadable(error, where).what)
        return
    yield from _of_kind(where, str(kind), mode, transparent)
    if complaint:
        yield Finding(where, f"this image is damaged: {complaint}")
    if picture.size and picture.size != size:
        yield Finding(where, other_size(size, picture.size))


def _of_kind(where: str, kind: str, mode: str, transparent: bool) -> Iterator[Finding]:
    """Formats that do not match the file's suffix, and modes that lose something when they are converted to RGB."""
    if mode in CLIPPED:
        yield Finding(where, f"mode {mode}: values above 255 would be clipped")
    elif transparent:
        yield Finding(where, f"mode {mode} with transparency, which is dropped", harmless=True)
    elif mode not in PLAIN:
        yield Finding(where, f"mode {mode}, converted to RGB when it is read", harmless=True)
    named = Path(where).suffix.lower()
    if (kind == "PNG") != (named == ".png"):
        yield Finding(where, f"a {kind} image in a {named} file", harmless=True)
