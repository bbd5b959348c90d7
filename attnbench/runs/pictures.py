"""The pictures that a command is given, and where what it makes of them is written: never over one of them."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attnbench.base import files
from attnbench.base.cores import cores
from attnbench.base.errors import ConfigError, DataError, listed
from attnbench.data.images.pillow import load_rgb
from attnbench.data.images.suffixes import FORMAT_OF, FORMATS
from attnbench.data.images.threads import in_order

SUFFIXES = tuple(FORMAT_OF)
THREADS = 4  # maximum number that decode pictures
KINDS = f"pictures are {', '.join(FORMATS)} files"
DONE = f"the others are done; {KINDS}"
SOFTWARE = "attnbench predict"
COLUMNS = ("image", "rank", "class", "probability")  # of predictions.csv, of a classifier

Prepared = TypeVar("Prepared")


@dataclass
class Pictures:
    """Pictures to read, one after another.

    Attributes:
        paths: their files.
        left_out: a line for each folder with files that are not pictures.
        bad: the errors of pictures that could not be read.
    """

    paths: list[Path]
    left_out: list[str] = field(default_factory=list)
    bad: dict[Path, DataError] = field(default_factory=dict)

    def read(self, prepare: Callable[[Any], Prepared], *, ahead: bool) -> Iterator[tuple[Path, Prepared]]:
        """Each picture that can be read, in order, after ``prepare`` of its RGB image.

        Args:
            ahead: whether threads prepare pictures before they are needed, for results that are much smaller than a
                photo.
        """

        def one(path: Path) -> Prepared | DataError:
            try:
                return prepare(load_rgb(path))
            except DataError as error:
                return error

        each = in_order(one, self.paths, min(THREADS, cores())) if ahead else map(one, self.paths)
        for path, found in zip(self.paths, each, strict=True):
            if isinstance(found, DataError):
                self.bad[path] = DataError(found.what, found.where)
            else:
                yield path, found

    def refuse_bad(self) -> None:
        """Report, at the end, how many pictures could not be read.

        Raises:
            DataError: there is one.
        """
        if len(self.bad) == 1:
            (error,) = self.bad.values()
            raise DataError(error.what, error.where, DONE if len(self.paths) > 1 else KINDS)
        if self.bad:
            what = f"{len(self.bad)} of {len(self.paths)} pictures cannot be read"
            raise DataError(what, listed(map(str, self.bad)), DONE)


def find(given: Sequence[Path]) -> Pictures:
    """The given files, and all pictures below the given folders, each once.

    Raises:
        DataError: there is no picture.
    """
    found = Pictures([])
    for path in given:
        found.paths += _below(path, found.left_out) if path.is_dir() else [path]
    found.paths = list(dict.fromkeys(found.paths))
    if not found.paths:
        what = f"no picture here; left out: {'; '.join(found.left_out)}" if found.left_out else "no picture here"
        raise DataError(what, listed(map(str, given)), f"give files, or folders with {', '.join(SUFFIXES)} files")
    return found


def _below(folder: Path, left_out: list[str]) -> list[Path]:
    """The pictures below a folder, by name; hidden files and folders are not looked at, nor what a call drew before."""
    pictures, others, seen = [], Counter[str](), set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        inner = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in inner if os.path.realpath(os.path.join(place, name)) not in seen)
        for path in (Path(place) / name for name in sorted(names) if not name.startswith(".")):
            if not path.name.lower().endswith(SUFFIXES):
                others[path.suffix.lower() or "without a suffix"] += 1
            elif is_ours(path):
                others[f"written by {SOFTWARE}"] += 1
            else:
                pictures.append(path)
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        left_out.append(f"{counts} ({folder})")
    return pictures


def as_png(image: Image.Image) -> Callable[[IO[bytes]], object]:
    """A function that writes a picture as PNG, with a note that this command made it."""
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    return lambda file: image.save(file, format="PNG", pnginfo=about)


def is_ours(path: Path) -> bool:
    """Whether a file is what this command writes: by a note in a PNG picture, by the form of its JSON and CSV files."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path, formats=["PNG"]) as image:
                return bool(image.info.get("Software") == SOFTWARE)
        if path.suffix == ".csv":
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.readline().rstrip("\n") == ",".join(COLUMNS)
        found = files.read_json(path)
        return isinstance(found, list) and all(isinstance(entry, dict) and "image" in entry for entry in found)
    except (OSError, ValueError, SyntaxError):  # not a picture at all, for one
        return False


class Outputs:
    """The files that a command writes into a folder.

    Args:
        folder: the folder; created if it does not exist.
        inputs: the pictures that the command reads, none of which is ever replaced.

    Raises:
        ConfigError: the folder is a run's own, whose files it would replace.
        StorageError: the folder cannot be created.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path]) -> None:
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            raise ConfigError("this is a run's folder", folder, "give --output another one, such as RUN/predictions")
        files.make_folder(folder)
        self.folder = folder
        self.inputs = list(inputs)
        self.real = {_identity(path) for path in self.inputs} | {_place(path) for path in self.inputs}
        self.taken: set[str] = set()

    def path(self, stem: str, suffix: str) -> Path:
        """A file that is no input, nor another output, nor a file that this command did not write.

        It is ``stem.png``, or ``stem-predicted.png`` where that would replace such a file; outputs of the same name are
        numbered from 2.

        Args:
            suffix: the file's suffix, with its dot.
        """
        for times in itertools.count():
            base = stem + "-predicted" * times
            name, number = f"{base}{suffix}", 1
            while name.casefold() in self.taken:
                number += 1
                name = f"{base}-{number}{suffix}"
            if self._free(self.folder / name):
                break
        self.taken.add(name.casefold())
        return self.folder / name

    def _free(self, path: Path) -> bool:
        """Whether nothing of the user's is lost if this file is written."""
        if _place(path) in self.real or _identity(path) in self.real:
            return False
        return not os.path.lexists(path) or (is_ours(path) and not path.is_symlink())


def _identity(path: Path) -> object:
    """The file that a path leads to through links: its device and number, or where it would be."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _place(path: Path) -> str:
    """Where a path's own directory entry is, be it a link or not."""
    return os.path.join(os.path.realpath(path.parent), path.name)
