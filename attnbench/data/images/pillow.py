"""Decoding and cropping with Pillow, for all formats. For most JPEG images, jpeg.py gives the same pixels faster."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.images import formats
from attnbench.data.images.crops import View
from attnbench.data.images.suffixes import FORMATS

LARGEST = 89_478_485  # pixels; above this, Pillow warns of a decompression bomb but continues


def read_rgb(data: bytes, where: str | Path, *, upright: bool = False) -> Image.Image:
    """Decode a picture of one of the known formats as RGB; of an animation, the first frame.

    Grey values of 16 bits are scaled to 8 bits.

    Args:
        data: the file's contents.
        where: the file's name, for error messages.
        upright: whether to apply the orientation in the EXIF data; torchvision and timm do not.

    Raises:
        DataError: the image is damaged, truncated, too large or of another format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            tag = formats.orientation(image)
            rgb = _as_rgb(image)
    except Exception as error:  # damage raises OSError, SyntaxError, struct.error and others
        kind = formats.format_of(data)
        raise unreadable(
            ValueError(f"its format is {kind}") if kind and kind not in FORMATS else error, where
        ) from error
    if image.format == "TIFF":  # Pillow has turned it
        return rgb if upright else formats.stored(rgb, tag)
    return formats.turned(rgb, tag) if upright else rgb


def _as_rgb(image: Image.Image) -> Image.Image:
    if formats.is_deep(image):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it with 8 or 16 bits")
    return image.convert("RGB")


def load_rgb(path: str | Path, *, upright: bool = True) -> Image.Image:
    """Read an image file as RGB, upright unless told otherwise.

    Raises:
        DataError: as ``read_file`` and ``read_rgb`` raise it.
    """
    return read_rgb(read_file(path), path, upright=upright)


def read_file(path: str | Path) -> bytes:
    """The contents of an image file.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise unreadable(OSError(error.strerror), path) from error


def unreadable(error: Exception, where: str | Path, data: bytes = b"") -> DataError:
    """The error for an image that cannot be read; it names the format of ``data`` if that is a foreign one."""
    kind = formats.format_of(data)
    reason = str(error).partition("<_io")[0].rstrip() or type(error).__name__
    if kind and kind not in FORMATS:
        reason = f"its format is {kind}"
    return DataError(f"this image cannot be read: {reason}", where, "restore it, or remove it from the data set")


def other_size(found: tuple[int, int], annotated: tuple[int, int]) -> str:
    """The message for an image whose width and height are not those of its annotation."""
    return "this image has {}x{} pixels, but its annotation gives {}x{}".format(*found, *annotated)


def draw(image: Image.Image, view: View) -> np.ndarray:
    """A view of an RGB image: uint8 (side, side, 3)."""
    left, top, width, height = view.part
    part = image.crop((left, top, left + width, top + height))
    part = part.resize(view.resized, Image.Resampling.BILINEAR)
    left, top = view.corner
    square = part.crop((left, top, left + view.side, top + view.side))
    if view.mirrored:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(square)
