"""Save a picture as PNG and PDF, and as an image for TensorBoard."""

from __future__ import annotations

import io
import logging
import struct
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.base import escape, files

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

log = logging.getLogger("attnbench")

DPI = 110
COLOURS = 256
RGB = 3  # TensorBoard's code for this colour space


def png(picture: Picture, about: str = "", dpi: int = DPI) -> bytes:
    """A picture as PNG in 256 colours; equal pictures give equal bytes.

    Args:
        about: a description that is stored in the file.
        dpi: pixels per inch.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    file, written = io.BytesIO(), PngInfo()
    drawn = _drawn(picture, format="png", dpi=dpi)
    written.add_itxt("Description", escape.visible(about))
    pixels = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)  # a third of the bytes
    pixels.save(file, "png", optimize=True, pnginfo=written)
    return file.getvalue()


def pdf(picture: Picture, about: str = "") -> bytes:
    """A picture as PDF; equal pictures give equal bytes."""
    unknown: Any = None  # no date and no program, so that the bytes depend on the picture alone
    about_it = {"Subject": escape.visible(about), "CreationDate": unknown, "Creator": unknown, "Producer": unknown}
    return _drawn(picture, format="pdf", metadata=about_it).getvalue()


def _drawn(picture: Picture, **options: Any) -> io.BytesIO:
    """A picture's file. Every text in it is shown as it is: dollars do not begin a formula.

    Only the labels of ticks are made anew while it is drawn: who sets them escapes their control characters.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    file = io.BytesIO()
    for text in picture.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(map(escape.visible, text.get_text().split("\n"))))
    with rc_context({"text.parse_math": False}), warnings.catch_warnings(record=True) as caught:  # ticks made later
        warnings.simplefilter("always")
        picture.savefig(file, **options)
    _retell(caught)
    return file


def _retell(caught: Sequence[warnings.WarningMessage]) -> None:
    """Say in one line that the font lacks characters; repeat other warnings."""
    lacking = [one for one in caught if "missing from font" in str(one.message)]
    if lacking:
        count = len({str(one.message) for one in lacking})
        log.warning(
            "the font of pictures lacks %s, drawn as boxes", f"{count} characters" if count > 1 else "a character"
        )
    for one in caught:
        if one not in lacking:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def save(picture: Picture, name: str, about: str, folder: Path, board: Path) -> list[Path]:
    """Write a picture as PNG and PDF, and for TensorBoard.

    Args:
        name: the figure's id. ``eca/1`` gives ``eca-1.png`` and the tag ``eca/1``.
        about: a description that is stored in the files.
        folder: the folder of the PNG and PDF files.
        board: the log folder of TensorBoard.

    Returns:
        The paths of the PNG and PDF files.

    Raises:
        StorageError: a file cannot be written.
    """
    stem = name.replace("/", "-")
    pixels = png(picture, about)
    written = {folder / f"{stem}.png": pixels, folder / f"{stem}.pdf": pdf(picture, about)}
    files.make_folder(folder)
    for path, content in written.items():
        files.write(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
    _show(pixels, name, stem, board)
    return list(written)


def _show(pixels: bytes, tag: str, stem: str, board: Path) -> None:
    """Write an event file with the picture, and delete earlier ones of the same figure."""
    files.make_folder(board)
    earlier = list(board.glob(f"events.out.tfevents.*.{stem}"))
    now = time.time()
    path = board / f"events.out.tfevents.{now:.6f}.{stem}"  # TensorBoard reads a folder's files in the order of names
    files.write(path, lambda file: file.write(_events(pixels, tag, now)))
    for old in earlier:
        with files.changing(old):
            old.unlink(missing_ok=True)


def _events(pixels: bytes, tag: str, now: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    width, height = struct.unpack(">II", pixels[16:24])  # from the PNG header
    image = Summary.Image(encoded_image_string=pixels, width=width, height=height, colorspace=RGB)
    drawn = Event(wall_time=now, step=0, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
    file = io.BytesIO()
    records = RecordWriter(file)
    for event in (Event(wall_time=now, file_version="brain.Event:2"), drawn):
        records.write(event.SerializeToString())
    return file.getvalue()
