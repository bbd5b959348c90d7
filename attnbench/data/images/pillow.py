"""Images decoded and drawn by Pillow, for all formats; jpeg.py draws the same pixels of most JPEG images, faster."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.images.crops import View

FORMATS = ("JPEG", "PNG")
LARGEST = 89_478_485  # pixels: from here on PIL warns of a decompression bomb, but goes on


def read_rgb(data: bytes, where: str | Path) -> Image.Image:
    """Decode a JPEG or PNG image, grey, palette or colour, as RGB.

    An orientation in its EXIF data is not applied, as torchvision does not.

    Args:
        data: the file's contents.
        where: their name, for complaints.

    Raises:
        DataError: the image is damaged, truncated, too large or of another format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            return image.convert("RGB")
    except Exception as error:  # damage surfaces as OSError, SyntaxError, struct.error and others
        raise unreadable(error, where) from error


def load_rgb(path: str | Path) -> Image.Image:
    """The image of a file as RGB.

    Raises:
        DataError: as ``read_file`` and ``read_rgb`` do.
    """
    return read_rgb(read_file(path), path)


def read_file(path: str | Path) -> bytes:
    """The contents of an image file.

    Raises:
        DataError: it is not there or cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise unreadable(OSError(error.strerror), path) from error


def unreadable(error: Exception, where: str | Path) -> DataError:
    """What a user is told of an image that cannot be read."""
    said = str(error).partition("<_io")[0].rstrip() or type(error).__name__
    return DataError(f"this image cannot be read: {said}", where, "restore it, or remove it from the data set")


def other_size(found: tuple[int, int], said: tuple[int, int]) -> str:
    """What a user is told of an image that is not as wide and high as its annotation says."""
    return "this image has {}x{} pixels, its annotation says {}x{}".format(*found, *said)


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
