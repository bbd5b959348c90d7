"""One pass over the contents of a data set's pictures: a hash of them, and how they are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from attnbench.data.images.contents import digest
from attnbench.data.images.formats import Facts, facts
from attnbench.data.images.suffixes import is_misnamed

# What is done about the EXIF orientation of a picture: it has none, is turned as its annotated size tells, is turned
# although its size does not tell, or is drawn as it is stored.
Turn = Literal["", "by size", "turned", "stored"]


@dataclass
class Survey:
    """What the pictures of a data set, or a fixed sample of them, are like.

    Attributes:
        contents: SHA-256 in hex over their bytes, and over how they are drawn where that is not as stored in 8 bits.
        read: the number of pictures that were read.
        of: the number of all pictures.
        turns: the number of pictures with an EXIF orientation, by what is done about it.
        deep: the number of grey pictures with 16 bits.
        misnamed: pictures whose contents have another format than their name says: where and the true format.
    """

    of: int
    contents: str = ""
    read: int = 0
    turns: Counter[Turn] = field(default_factory=Counter)
    deep: int = 0
    misnamed: list[tuple[str, str]] = field(default_factory=list)

    def drawn(self) -> str:
        """How pictures are drawn that are not drawn as stored in 8 bits; empty if there are none."""
        upright = self.turns["turned"] + self.turns["by size"]
        parts = {"turned upright": upright, "of 16 bits scaled to 8": self.deep}
        return ", ".join(f"{number:,} {what}" for what, number in parts.items() if number)

    def notes(self) -> list[str]:
        """Lines for the start of a run."""
        among = f" (among {self.read:,} that were looked at)" if self.read < self.of else ""
        lines = [f"pictures: {drawn}{among}"] if (drawn := self.drawn()) else []
        if number := self.turns["stored"]:
            lines.append(f"pictures: {number:,} with an EXIF orientation drawn as stored{among}")
        if self.misnamed:
            where, kind = self.misnamed[0]
            more = f", and {len(self.misnamed) - 1:,} more" if len(self.misnamed) > 1 else ""
            lines.append(f"pictures: {where} is {kind}, as its name does not say{more}")
        return lines


def survey(
    sizes: Sequence[int],
    read: Callable[[int], bytes],
    where: Callable[[int], str],
    turn: Callable[[int, bytes, Facts], Turn],
) -> Survey:
    """Read all pictures, or a fixed sample if there are many.

    Args:
        sizes: the size of each picture in bytes.
        read: returns the bytes of a picture, given its number.
        where: the name of a picture in messages.
        turn: what is done about the orientation of a picture that has one.

    Raises:
        DataError: a picture cannot be read.
    """
    seen: dict[int, tuple[Facts, Turn]] = {}

    def look(number: int, data: bytes) -> bytes:
        about = facts(data)
        done = turn(number, data, about) if about.orientation > 1 else ""
        seen[number] = about, done
        return b"turned" * (done == "turned") + b"16 bits" * about.deep

    found = Survey(len(sizes), digest(sizes, read, look))
    for number, (about, done) in sorted(seen.items()):
        found.read += 1
        found.deep += about.deep
        if done:
            found.turns[done] += 1
        if is_misnamed(where(number), about.format):
            found.misnamed.append((where(number), about.format))
    return found
