"""Crops of JPEG images with the same pixels as Pillow's, at more than twice its speed.

``jpeg.c`` decodes with the library that Pillow itself uses, and it transforms and resizes only the part of an image
that the crop needs. Pillow is used instead if this library is not available, if it does not give Pillow's pixels, and
for every image of an unusual kind. The pixels are the same either way, bit by bit.
"""

from __future__ import annotations

import ctypes
import io
import logging
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from attnbench.base import compile_c
from attnbench.data.images import pillow
from attnbench.data.images.crops import View

log = logging.getLogger("attnbench")

SOURCE = Path(__file__).with_name("jpeg.c")
MESSAGE = 200  # maximum bytes of a decoder message, as in jpeg.c
Choose = Callable[[int, int], View]


class Engine(NamedTuple):
    """The compiled functions.

    Attributes:
        tall_first: whether this Pillow version resizes vertically first when that saves more work, which changes the
            rounding.
    """

    functions: ctypes.CDLL
    tall_first: bool


def draw(data: bytes, choose: Choose) -> np.ndarray | None:
    """The crop of an image, uint8 (side, side, 3); ``choose`` returns the view for the image's width and height.

    None if Pillow has to draw it: the image is not a JPEG, or it is CMYK, damaged or too large, or there is no engine.
    """
    engine = running()
    shape = measure(engine, data) if engine else None
    return None if engine is None or shape is None else _drawn(engine, data, choose(*shape))


def measure(engine: Engine, data: bytes) -> tuple[int, int] | None:
    """Width and height of an image, or None if Pillow has to read it."""
    shape = (ctypes.c_int32 * 2)()
    if engine.functions.measure(data, len(data), shape) or shape[0] * shape[1] > pillow.LARGEST:
        return None
    return shape[0], shape[1]


def inspect(data: bytes) -> str | None:
    """Decode all of a JPEG image and return the decoder's first warning, or "" if there is none; Pillow ignores many.

    None if Pillow has to read the image.
    """
    engine = running()
    if engine is None or measure(engine, data) is None:
        return None
    text = ctypes.create_string_buffer(MESSAGE)
    failed = engine.functions.inspect(data, len(data), text)
    return text.value.decode(errors="replace") or ("it cannot be decoded" if failed else "")


def _drawn(engine: Engine, data: bytes, view: View) -> np.ndarray | None:
    (_, _, width, height), (to_width, to_height) = view.part, view.resized
    # Pillow 13 resizes vertically first if the height shrinks by more than twice as much as the width; both may grow.
    down_first = engine.tall_first and height > to_height and height - to_height > 2 * (width - to_width)
    numbers = (*view.part, *view.resized, *view.corner, view.side, view.mirrored, down_first)
    pixels = np.empty((view.side, view.side, 3), np.uint8)
    failed = engine.functions.draw(data, len(data), (ctypes.c_int32 * 11)(*numbers), pixels.ctypes.data)
    return None if failed else pixels


@cache
def running() -> Engine | None:
    """The engine, started once. If there is none, a line in the log gives the reason."""
    try:
        return _start()
    except compile_c.Unavailable as reason:
        log.warning("images are decoded by Pillow, at half the speed: %s", reason)
        return None


def _start() -> Engine:
    """Compile jpeg.c, find Pillow's decoder, and compare both orders of resizing with Pillow's own pixels.

    Raises:
        compile_c.Unavailable: there is no compiler or no decoder, or the pixels differ.
    """
    functions = compile_c.load(SOURCE)
    functions.measure.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
    functions.inspect.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
    functions.draw.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    if not any(functions.attach(str(path).encode()) == 0 for path in _libraries()):
        raise compile_c.Unavailable("Pillow's libjpeg-turbo was not found")
    data = _trial()
    for engine in (Engine(functions, True), Engine(functions, False)):
        if all(_agrees(engine, data, view) for view in TRIALS):
            return engine
    raise compile_c.Unavailable(f"the pixels would differ from those of Pillow {PIL.__version__}")


def _libraries() -> Iterator[str | Path]:
    """The places where Pillow's decoder may be: in its wheel or in the system."""
    package = Path(PIL.__file__).parent
    yield from package.parent.glob("[Pp]illow.libs/libjpeg*.so*")
    yield from package.glob(".dylibs/libjpeg*.dylib")
    yield from filter(None, [find_library("jpeg")])


# Views of a 75x121 image: at every edge, and on both sides of the ratio at which Pillow changes its order.
TRIALS = (
    View((0, 0, 75, 50), (40, 40), (0, 0), 40, True),
    View((21, 13, 54, 108), (24, 30), (1, 3), 20),
    *(View((0, 0, 50, height), (40, 40), (0, 0), 40) for height in (60, 61)),
    *(View((55, 121 - height, 20, height), (40, 40), (0, 0), 40) for height in (39, 41)),
)


def _trial() -> bytes:
    """A small JPEG image of noise."""
    noise = np.frombuffer(np.random.default_rng(0).bytes(121 * 75 * 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.reshape(121, 75, 3)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _agrees(engine: Engine, data: bytes, view: View) -> bool:
    ours = _drawn(engine, data, view)
    return ours is not None and np.array_equal(ours, pillow.draw(pillow.read_rgb(data, "a trial"), view))
