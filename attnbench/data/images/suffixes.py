"""Which files are pictures, by the suffixes of their names. Without Pillow, which CIFAR's own files do not need."""

from __future__ import annotations

import os
from typing import Literal

# Pillow's name of the format that a suffix promises.
FORMAT_OF = {
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".jfif": "JPEG",
}
FORMATS = tuple(dict.fromkeys(FORMAT_OF.values()))
Formats = Literal["all", "jpeg_png"]
SUFFIXES: dict[Formats, tuple[str, ...]] = {"all": tuple(FORMAT_OF), "jpeg_png": (".jpeg", ".jpg", ".png")}


def is_misnamed(name: str, kind: str) -> bool:
    """Whether a file of this format, as far as it is a known one, has the suffix of another one."""
    promised = FORMAT_OF.get(os.path.splitext(name)[1].lower(), "")
    return bool(promised) and kind in FORMATS and promised != kind
