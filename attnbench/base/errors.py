"""What can go wrong for a user: one line each, and the exit code that says which kind it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from types import FrameType


class Failure(Exception):
    """A failure the user can act on, printed as ``error: what (where); what to do``.

    Args:
        what: what is wrong, with the offending value.
        where: the dotted configuration key, file or folder it was found in.
        todo: what to do about it.
    """

    code = 1

    def __init__(self, what: str, where: object = "", todo: str = "") -> None:
        super().__init__(what, str(where), todo)
        self.what, self.where, self.todo = what, str(where), todo

    def __str__(self) -> str:
        line = self.what
        if self.where:
            line += f" ({self.where})"
        if self.todo:
            line += f"; {self.todo}"
        return " ".join(line.split())


class ConfigError(Failure, ValueError):
    """A configuration that cannot be run: unknown key, wrong type, out of range, impossible pair."""

    code = 2


class DataError(Failure):
    """A data set that is missing, damaged, tampered with or laid out differently."""

    code = 3


class OtherData(DataError):
    """The data are not those that a run was made of."""


class NonFiniteError(Failure):
    """The loss or a weight became NaN or infinite; the last checkpoint is still finite."""

    code = 4


class StorageError(Failure):
    """A checkpoint or result that cannot be written, read or trusted."""

    code = 5


class OutOfMemory(Failure):
    """The device or the host ran out of memory."""

    code = 6


class BusyError(Failure):
    """Another process holds the run's folder."""

    code = 7


class Stopped(Failure):
    """A signal asked the run to stop; it is saved and the same command continues it."""

    code = 143


def nearest(word: str, known: Collection[str]) -> str:
    """What to do about a name that is not known: the nearest one that is, and all of them."""
    close = get_close_matches(word, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}there are {', '.join(known)}"


LISTED = 5  # keys of each kind that an error names


def listed(keys: Iterable[str]) -> str:
    """The first five and how many more there are: ``a, b, c, d, e and 3 more``."""
    names = list(keys)
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def first_line(error: Exception) -> str:
    """What an exception says, as one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


KINDS: dict[int, type[Failure]] = {kind.code: kind for kind in Failure.__subclasses__()}

EARLY = Stopped("stopped before the first step", todo="run the same command to start again")


def say(failure: Failure) -> None:
    """One line on stderr, from one process of the run."""
    if main_process():
        print(f"error: {failure}", file=sys.stderr)


def main_process() -> bool:
    """Whether this is the one of a run's processes that speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler until a run has one that saves: KeyboardInterrupt, but the end of the process in an import.

    What comes out of a module that is half imported may be anything.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            say(EARLY)
            os._exit(Stopped.code)
        frame = frame.f_back
    raise KeyboardInterrupt
