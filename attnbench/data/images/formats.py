"""The formats of pictures, by a file's name and by its bytes, and what a file says about how it is to be drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

from PIL import Image

from attnbench.data.images.suffixes import FORMATS

ORIENTATION = 0x0112  # the tag in EXIF data
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPING = (5, 6, 7, 8)  # orientations that exchange width and height
TOKENS = (b"Exif", b"EXIF", b"eXIf", b"exif", b"Orientation")  # a file with an orientation has one of them

# The first bytes of files that people name as pictures, or store in place of them.
STARTS = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "ICO",
    b"%PDF": "PDF",
    b"PK\3\4": "ZIP",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "Git LFS pointer",
}
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC"}
TEXTS = {b"<svg": "SVG", b"<!doctype html": "HTML", b"<html": "HTML"}


def format_of(data: bytes) -> str:
    """The format that a file's first bytes show, under Pillow's name if Pillow can read it; "" if it is unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "")
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return _known(data, STARTS) or _known(text, TEXTS)


def _known(data: bytes, starts: Mapping[bytes, str]) -> str:
    return next((name for start, name in starts.items() if data.startswith(start)), "")


class Facts(NamedTuple):
    """What the bytes of a picture say about how it is to be drawn.

    Attributes:
        format: see ``format_of``.
        orientation: of EXIF, 1 to 8; 1 is upright.
        deep: whether it is grey with 16 bits a pixel.
    """

    format: str
    orientation: int
    deep: bool


def facts(data: bytes) -> Facts:
    """The facts about a picture; a damaged one counts as upright."""
    kind = format_of(data)
    deep = kind == "PNG" and data[24:26] == b"\x10\0"
    if kind == "TIFF" or any(token in data for token in TOKENS):
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return Facts(kind, orientation(image), deep or is_deep(image))
        except Exception:  # damage raises many types; whoever decodes the picture reports it
            return Facts(kind, 1, deep)
    return Facts(kind, 1, deep)


def is_deep(image: Image.Image) -> bool:
    """Whether a picture is grey with 16 bits a pixel."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def orientation(image: Image.Image) -> int:
    """The orientation in the EXIF data of an opened picture that is not loaded yet; 1 if it has none or a wrong one."""
    try:
        tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF data are often damaged, and the picture is fine
        return 1
    return tag if tag in TURNS else 1


def turned(image: Image.Image, tag: int) -> Image.Image:
    """A stored picture with this orientation, upright."""
    return image.transpose(TURNS[tag]) if tag in TURNS else image


def stored(image: Image.Image, tag: int) -> Image.Image:
    """An upright picture as it would be stored with this orientation: the inverse of ``turned``."""
    return turned(image, {6: 8, 8: 6}.get(tag, tag))


def turned_size(size: tuple[int, int], about: Facts) -> tuple[int, int]:
    """Width and height of the upright picture, given those that Pillow reports of the file."""
    swapped = about.orientation in SWAPPING and about.format != "TIFF"  # Pillow reports a TIFF as it turns it
    return (size[1], size[0]) if swapped else size
