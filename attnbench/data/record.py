"""The record of a run's data, and how it is compared with other data.

The comparison has a cheap and an expensive step. A *stamp* is a hash over the names, sizes and times of all files below
the data set's folder; no file is opened for it. If the stamp is the same, the data are the same. If it differs, because
files were moved, copied or changed, the data set is opened and its fingerprint and the contents of its pictures are
compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOST_FILES = 3_000_000  # a folder with more files gets no stamp: its data are opened each time


@dataclass(frozen=True)
class DataRecord:
    """The data of a run.

    Attributes:
        source: a line that describes the data.
        fingerprint: SHA-256 that changes when the data change; see ``Dataset``.
        contents: SHA-256 over the bytes of all pictures, or of a fixed sample of them. Empty if the fingerprint covers
            the pixels, and for runs of release 0.1.0.
        images: the numbers of training and validation samples, such as ``56 + 8``; empty for runs of release 0.1.0.
        root: the folder that the data were read from; empty for data that come with attnbench.
        stamp: see the function ``stamp``.
        drawn: how some pictures are drawn that are not drawn as stored in 8 bits; empty if there are none.
    """

    source: str = ""
    fingerprint: str = ""
    contents: str = ""
    images: str = ""
    root: str = ""
    stamp: str = ""
    drawn: str = ""

    def as_dict(self) -> dict[str, str]:
        """The record as result.json and data.json hold it, without empty values."""
        return {key: value for key, value in asdict(self).items() if value}

    def difference(self, now: DataRecord) -> str:
        """A description of how the data of ``now`` differ from these; empty if the records show no difference."""
        if self.fingerprint != now.fingerprint:
            if self.source != now.source:
                return f"{self.source} then, {now.source} now"
            return f"{now.source}: files, sizes or annotations have changed"
        if self.contents and now.contents and self.contents != now.contents:
            if self.drawn != now.drawn:
                then, today = (one.drawn or "all as stored" for one in (self, now))
                return f"{now.source}: of the pictures {then} then, {today} now"
            return f"{now.source}: pictures have the same names and sizes but other contents"
        if self.images and now.images and self.images != now.images:
            return f"{self.images} images for training and validation then, {now.images} now"
        return ""


def from_dict(kept: Any) -> DataRecord | None:
    """The record from a run's JSON file; None if it holds no fingerprint to compare."""
    if not isinstance(kept, Mapping) or not kept.get("fingerprint"):
        return None
    return DataRecord(**{key: str(kept.get(key, "")) for key in DataRecord.__dataclass_fields__})


def stamp(root: Path) -> str:
    """SHA-256 in hex over the path, size and times of every file below a folder.

    It is empty if a file cannot be examined or if there are too many files. It includes each file's change time
    (``ctime``), so that it notices a file that was rewritten and then given its old date.
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
    """A line for each file below a folder, in order; links to a folder above are not followed."""
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
        except FileNotFoundError:  # a broken link
            found = entry.stat(follow_symlinks=False)
        name = os.fsencode(os.path.relpath(path, root))
        yield name + f"\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode()
