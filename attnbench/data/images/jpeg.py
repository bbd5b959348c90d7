"""Views of JPEG images at Pillow's own pixels, at more than twice its speed.

Of an image only what the view shows is transformed and resized (``jpeg.c``), by the library that Pillow itself decodes
with. Where that cannot be had, where it does not give Pillow's pixels, and for every image that is not plain, there is
no answer and Pillow draws: the pixels are the same either way, bit by bit.
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
MESSAGE = 200  # bytes of a complaint, as in the source
Choose = Callable[[int, int], View]


class Engine(NamedTuple):
    """The compiled functions.

    Attributes:
        tall_first: whether this Pillow resizes vertically first where that saves more; the rounding differs.
    """

    functions: ctypes.CDLL
    tall_first: bool


def draw(data: bytes, choose: Choose) -> np.ndarray | None:
    """The view that ``choose`` takes of an image of some width and height: uint8 (side, side, 3).

    None for what Pillow has to draw: no JPEG, CMYK, damaged, too large, or no engine here.
    """
    engine = running()
    shape = measure(engine, data) if engine else None
    return None if engine is None or shape is None else _drawn(engine, data, choose(*shape))


def measure(engine: Engine, data: bytes) -> tuple[int, int] | None:
    """Width and height of an image, or None if Pillow has to look at it."""
    shape = (ctypes.c_int32 * 2)()
    if engine.functions.measure(data, len(data), shape) or shape[0] * shape[1] > pillow.LARGEST:
        return None
    return shape[0], shape[1]


def inspect(data: bytes) -> str | None:
    """What the decoder says of a JPEG image, all of it decoded: nothing of a good one, where Pillow ignores much.

    None for what Pillow has to look at.
    """
    engine = running()
    if engine is None or measure(engine, data) is None:
        return None
    text = ctypes.create_string_buffer(MESSAGE)
    failed = engine.functions.inspect(data, len(data), text)
    return text.value.decode(errors="replace") or ("it cannot be decoded" if failed else "")


def _drawn(engine: Engine, data: bytes, view: View) -> np.ndarray | None:
    (_, _, width, height), (to_width, to_height) = view.part, view.resized
    # Pillow 13 goes down first if the height loses more than twice what the width does; both may grow.
    down_first = engine.tall_first and height > to_height and height - to_height > 2 * (width - to_width)
    numbers = (*view.part, *view.resized, *view.corner, view.side, view.mirrored, down_first)
    pixels = np.empty((view.side, view.side, 3), np.uint8)
    failed = engine.functions.draw(data, len(data), (ctypes.c_int32 * 11)(*numbers), pixels.ctypes.data)
    return None if failed else pixels


@cache
def running() -> Engine | None:
    """The engine, started once; without one, a line in the log says why."""
    try:
        return _start()
    except compile_c.Unavailable as reason:
        log.warning("images are decoded by Pillow, at half the speed: %s", reason)
        return None


def _start() -> Engine:
    """Compile, find Pillow's decoder, and try both ways of resizing against Pillow's own.

    Raises:
        native.Unavailable: there is no compiler or no decoder, or the pixels are others.
    """
    functions = compile_c.load(SOURCE)
    functions.measure.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
    functions.inspect.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
    functions.draw.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    if not any(functions.attach(str(path).encode()) == 0 for path in _libraries()):
        raise compile_c.Unavailable("Pillow's libjpeg-turbo is not found")
    data = _trial()
    for engine in (Engine(functions, True), Engine(functions, False)):
        if all(_agrees(engine, data, view) for view in TRIALS):
            return engine
    raise compile_c.Unavailable(f"the pixels would not be those of Pillow {PIL.__version__}")


def _libraries() -> Iterator[str | Path]:
    """Where the decoder may be that Pillow uses: inside its wheel, or of the system."""
    package = Path(PIL.__file__).parent
    yield from package.parent.glob("[Pp]illow.libs/libjpeg*.so*")
    yield from package.glob(".dylibs/libjpeg*.dylib")
    yield from filter(None, [find_library("jpeg")])


# Views of an image of 75x121: at every edge, and on both sides of where Pillow changes its order.
TRIALS = (
    View((0, 0, 75, 50), (40, 40), (0, 0), 40, True),
    View((21, 13, 54, 108), (24, 30), (1, 3), 20),
    *(View((0, 0, 50, height), (40, 40), (0, 0), 40) for height in (60, 61)),
    *(View((55, 121 - height, 20, height), (40, 40), (0, 0), 40) for height in (39, 41)),
)


def _trial() -> bytes:
    """A small image of noise."""
    noise = np.frombuffer(np.random.default_rng(0).bytes(121 * 75 * 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.reshape(121, 75, 3)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _agrees(engine: Engine, data: bytes, view: View) -> bool:
    ours = _drawn(engine, data, view)
    return ours is not None and np.array_equal(ours, pillow.draw(pillow.read_rgb(data, "a trial"), view))
