"""Many pictures on one, each with a few words below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 160  # pixels of a picture's place
MARGIN = 8
LINE = 15  # pixels of a line of text
TEXT = 12
BACKGROUND, FOREGROUND = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Tile:
    """A picture on a sheet.

    Attributes:
        image: of any size; it is fitted into a square.
        lines: the words below it; lines that are too long are cut.
        colour: of the first line.
    """

    image: Image.Image
    lines: Sequence[str]
    colour: tuple[int, int, int] = FOREGROUND


def fitted(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture made to fit into a square; small ones are enlarged by a whole number, so that pixels stay squares."""
    longer = max(image.size)
    if longer * 2 <= side:
        times = side // longer
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    if longer <= side:
        return image
    sides = (max(1, image.width * side // longer), max(1, image.height * side // longer))
    return image.resize(sides, Image.Resampling.BICUBIC)


def sheet(tiles: Sequence[Tile], columns: int = 6) -> Image.Image:
    """The pictures in rows from left to right, RGB."""
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns) or 1
    lines = max((len(tile.lines) for tile in tiles), default=0)
    width, height = SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + lines * LINE
    page = Image.new("RGB", (columns * width, rows * height), BACKGROUND)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=TEXT)
    for number, tile in enumerate(tiles):
        left, top = number % columns * width + MARGIN, number // columns * height + MARGIN
        picture = fitted(tile.image)
        page.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        for row, line in enumerate(tile.lines):
            at = (left, top + SIDE + 2 + row * LINE)
            draw.text(at, _cut(line, font), fill=FOREGROUND if row else tile.colour, font=font)
    return page


def _cut(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """A line that is as wide as a picture at most."""
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    if font.getlength(line) <= SIDE:
        return line
    while line and font.getlength(f"{line}…") > SIDE:
        line = line[:-1]
    return f"{line}…"
