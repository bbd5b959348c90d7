"""Which data a run was made of, as its result keeps it, and whether other data are the same.

Two looks of different cost tell data apart. A *stamp* is taken over the names, sizes and times of all files below the
data set's folder, without opening one: where it is as it was, so are the data. Where it is not, because they were
moved, copied or changed, the data set is opened and its fingerprint and the contents of its pictures are compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOST_FILES = 3_000_000  # a folder with more is not stamped: its data are opened each time


@dataclass(frozen=True)
class DataRecord:
    """The data of a run.

    Attributes:
        source: one line for people.
        fingerprint: SHA-256 over what the data set's own kind counts as its data; see ``Dataset``.
        contents: SHA-256 over the bytes of its pictures, or of a fixed choice of them; empty where the fingerprint is
            taken over pixels, and of runs of release 0.1.0.
        root: the folder they were read from; empty for data that come with attnbench.
        stamp: see ``stamp``.
    """

    source: str = ""
    fingerprint: str = ""
    contents: str = ""
    root: str = ""
    stamp: str = ""

    def as_dict(self) -> dict[str, str]:
        """As result.json and data.json hold it."""
        return {key: value for key, value in asdict(self).items() if value}

    def difference(self, now: DataRecord) -> str:
        """What tells other data from these, in words; empty if they are the same as far as both records say."""
        if self.fingerprint != now.fingerprint:
            if self.source != now.source:
                return f"{self.source} then, {now.source} now"
            return f"{now.source}: files, sizes or annotations have changed"
        if self.contents and now.contents and self.contents != now.contents:
            return f"{now.source}: pictures have the same names and sizes and other contents"
        return ""


def from_dict(kept: Any) -> DataRecord | None:
    """The record in a run's folder; None where there is none that can be compared."""
    if not isinstance(kept, Mapping) or not kept.get("fingerprint"):
        return None
    return DataRecord(**{key: str(kept.get(key, "")) for key in DataRecord.__dataclass_fields__})


def stamp(root: Path) -> str:
    """SHA-256 in hex over the path, size and times of every file below a folder; empty if that cannot be taken.

    The time of a file's last change of any kind is among them, so that a file that was rewritten and given its old
    date back is noticed.
    """
    digest = hashlib.sha256()
    try:
        for number, line in enumerate(_files(root, root, frozenset())):
            if number == MOST_FILES:
                return ""
            digest.update(line)
    except OSError:
        return ""
    return digest.hexdigest()


def _files(folder: Path, root: Path, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
    """A line for each file below a folder, in order; a link that leads back to a folder above is not followed."""
    about = os.stat(folder)
    here = (about.st_dev, about.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_dir():
            yield from _files(path, root, above | {here})
            continue
        try:
            found = entry.stat()
        except FileNotFoundError:  # a link to nowhere
            found = entry.stat(follow_symlinks=False)
        name = os.fsencode(os.path.relpath(path, root))
        yield name + f"\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode()
