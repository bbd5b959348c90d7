"""Decoding and cropping with Pillow, for all formats. For most JPEG images, jpeg.py gives the same pixels faster."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.images.crops import View

FORMATS = ("JPEG", "PNG")
LARGEST = 89_478_485  # pixels; above this, Pillow warns of a decompression bomb but continues


def read_rgb(data: bytes, where: str | Path) -> Image.Image:
    """Decode a grey, palette or colour image in JPEG or PNG format as RGB.

    An orientation in the EXIF data is not applied, as in torchvision.

    Args:
        data: the file's contents.
        where: the file's name, for error messages.

    Raises:
        DataError: the image is damaged, truncated, too large or of another format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            return image.convert("RGB")
    except Exception as error:  # damage raises OSError, SyntaxError, struct.error and others
        raise unreadable(error, where) from error


def load_rgb(path: str | Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        DataError: as ``read_file`` and ``read_rgb`` raise it.
    """
    return read_rgb(read_file(path), path)


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


def unreadable(error: Exception, where: str | Path) -> DataError:
    """The error for an image that cannot be read."""
    reason = str(error).partition("<_io")[0].rstrip() or type(error).__name__
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
