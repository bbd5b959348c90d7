"""Examining the images of a data set before a run reads them: a ``Finding`` for each thing that is wrong."""

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
CLIPPED = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes whose values above 255 would be lost

Seen = Callable[[], object]


@dataclass(frozen=True)
class Finding:
    """Something that a user should know of a data set.

    Attributes:
        where: file, or shard and record, or folder.
        harmless: whether a run does without a complaint: worth a look and no more.
    """

    where: str
    what: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{'note: ' if self.harmless else ''}{self.where}: {self.what}"


@dataclass(frozen=True)
class Format:
    """A layout that can be checked.

    Attributes:
        is_here: whether a folder has it.
        size: how many images or files will be looked at.
        check: the findings; it calls ``seen`` for each image or file.
    """

    name: str
    is_here: Callable[[Path], bool]
    size: Callable[[Path], int]
    check: Callable[[Path, Seen, int], Iterator[Finding]]


@dataclass(frozen=True)
class Picture:
    """An image to be examined.

    Attributes:
        where: for messages.
        kind: its split and class.
        read: its bytes, or the DataError why not.
        size: width and height that an annotation says, by which its boxes are to be read.
    """

    where: str
    kind: str
    read: Callable[[], bytes]
    size: tuple[int, int] | None = None


def examine(pictures: Iterable[Picture], seen: Seen, threads: int) -> Iterator[Finding]:
    """What is wrong with images, one by one and beside one another: the same bytes twice."""
    first: dict[bytes, tuple[str, str]] = {}
    for picture, digest, findings in in_order(_examined, pictures, threads):
        seen()
        yield from findings
        where, kind = first.setdefault(digest, (picture.where, picture.kind)) if digest else (picture.where, "")
        if where != picture.where:
            yield Finding(picture.where, f"the same bytes as {where}", harmless=kind == picture.kind)


def _examined(picture: Picture) -> tuple[Picture, bytes, list[Finding]]:
    """An image, the digest of its bytes, and what is wrong with it."""
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
    except Exception as error:  # as many kinds as in read_rgb
        yield Finding(where, error.what if isinstance(error, DataError) else unreadable(error, where).what)
        return
    yield from _of_kind(where, str(kind), mode, transparent)
    if complaint:
        yield Finding(where, f"this image is damaged: {complaint}")
    if picture.size and picture.size != size:
        yield Finding(where, other_size(size, picture.size))


def _of_kind(where: str, kind: str, mode: str, transparent: bool) -> Iterator[Finding]:
    """Formats and modes that are not what they seem, or lose something on the way to RGB."""
    if mode in CLIPPED:
        yield Finding(where, f"mode {mode}: values above 255 would be clipped")
    elif transparent:
        yield Finding(where, f"mode {mode} with transparency, which is dropped", harmless=True)
    elif mode not in PLAIN:
        yield Finding(where, f"mode {mode}, converted to RGB as it is read", harmless=True)
    named = Path(where).suffix.lower()
    if (kind == "PNG") != (named == ".png"):
        yield Finding(where, f"a {kind} image in a {named} file", harmless=True)
