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
from attnbench.data.images.formats import Facts, facts, turned_size
from attnbench.data.images.pillow import other_size, read_rgb, unreadable
from attnbench.data.images.suffixes import FORMATS, is_misnamed
from attnbench.data.images.threads import in_order

PLAIN = ("RGB", "L")

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
class About:
    """A line about a data set that is not a finding, such as the number of pictures of each class."""

    line: str

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True)
class Format:
    """A data set layout that can be checked.

    Attributes:
        is_here: whether a folder has this layout.
        size: the number of images or files that a check reads.
        check: yields the findings and lines about the whole, given a folder, a function to call once per image or
            file, and a thread count.
    """

    name: str
    is_here: Callable[[Path], bool]
    size: Callable[[Path], int]
    check: Callable[[Path, Seen, int], Iterator[Finding | About]]


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
            mode, transparent, size = image.mode, image.has_transparency_data, image.size
            frames = getattr(image, "n_frames", 1)
        complaint = jpeg.inspect(data)
        if complaint is None:
            read_rgb(data, where)
    except Exception as error:  # damage raises many types, as in read_rgb
        yield Finding(where, error.what if isinstance(error, DataError) else unreadable(error, where, data).what)
        return
    about = facts(data)
    yield from _of_kind(where, about, mode, transparent, frames)
    if complaint:
        yield Finding(where, f"this image is damaged: {complaint}")
    if picture.size:
        yield from _annotated(where, about, size, picture.size)
    elif about.orientation > 1:
        what = f"EXIF orientation {about.orientation}: drawn upright by dataset=folder, as stored by dataset=imagenet"
        yield Finding(where, what, harmless=True)


def _of_kind(where: str, about: Facts, mode: str, transparent: bool, frames: int) -> Iterator[Finding]:
    """Formats that do not match the file's suffix, and modes that lose something when they are converted to RGB."""
    if about.deep:
        yield Finding(where, "grey of 16 bits, scaled to 8 bits when it is read", harmless=True)
    elif transparent:
        yield Finding(where, f"mode {mode} with transparency, which is dropped", harmless=True)
    elif mode not in PLAIN:
        yield Finding(where, f"mode {mode}, converted to RGB when it is read", harmless=True)
    if frames > 1 and about.format != "JPEG":
        yield Finding(where, f"{frames} frames, of which the first is read", harmless=True)
    if is_misnamed(where, about.format):
        yield Finding(where, f"a {about.format} image in a {Path(where).suffix.lower()} file", harmless=True)


def _annotated(where: str, about: Facts, size: tuple[int, int], annotated: tuple[int, int]) -> Iterator[Finding]:
    """A picture whose size is not its annotation's, or whose orientation decides where its boxes are."""
    if about.orientation == 1:
        if size != annotated:
            yield Finding(where, other_size(size, annotated))
        return
    upright = turned_size(size, about)
    kept = f"EXIF orientation {about.orientation}"
    if annotated not in (size, upright):
        yield Finding(where, f"{other_size(upright, annotated)}; it has {kept}")
    elif size == upright:
        what = "its size does not tell whether the boxes belong to the upright or to the stored picture"
        yield Finding(where, f"{kept}: {what}; turn the pixels and remove the tag, or see dataset.orientation")
    else:
        yield Finding(where, f"{kept}: drawn {'upright' if annotated == upright else 'as stored'}, as annotated", True)
