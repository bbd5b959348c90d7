"""Errors for users. Each is printed as one line, and its class has its own exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from types import FrameType

from attnbench.base import escape


class Failure(Exception):
    """A failure that the user can act on, printed as ``error: what (where); what to do``.

    Args:
        what: the problem, with the invalid value.
        where: the configuration key, file or folder that has the problem.
        todo: what the user can do about it.
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
        return escape.visible(" ".join(line.split()))


class ConfigError(Failure, ValueError):
    """The configuration is invalid: an unknown key, a wrong type, a value out of range, or options that do not fit."""

    code = 2


class DataError(Failure):
    """The data set is missing, damaged or modified, or it has another layout."""

    code = 3


class OtherData(DataError):
    """The data are not the ones that a run was made with."""


class NonFiniteError(Failure):
    """The loss or a weight became NaN or infinite; the last checkpoint is still finite."""

    code = 4


class StorageError(Failure):
    """A checkpoint or result cannot be written, read or trusted."""

    code = 5


class OutOfMemory(Failure):
    """The device or the host ran out of memory."""

    code = 6


class BusyError(Failure):
    """Another process holds the run's folder."""

    code = 7


class Stopped(Failure):
    """A signal stopped the run. It has been saved, and the same command continues it."""

    code = 143


def nearest(name: str, known: Collection[str]) -> str:
    """What to do about an unknown name: a suggestion, if a known name is similar, and all known names."""
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}there are {', '.join(known)}"


LISTED = 5  # maximum number of keys that an error names


def listed(keys: Iterable[str]) -> str:
    """The first five keys and the number of further ones: ``a, b, c, d, e and 3 more``."""
    names = list(keys)
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


UNSAFE = re.compile(r"WeightsUnpickler error: (.*?)(?=\n\s*\n|Check the documentation|$)", re.S)
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def reason(error: Exception) -> str:
    """The whole message of a library's exception as one line without escape codes, or its type if it has none.

    Of torch's refusal to unpickle a file, its advice to unpickle it nevertheless is left out.
    """
    text = ESCAPES.sub("", str(error))
    if found := UNSAFE.search(text):
        text = found[1]
    return " ".join(text.split()).rstrip(".") or type(error).__name__


KINDS: dict[int, type[Failure]] = {kind.code: kind for kind in Failure.__subclasses__()}

EARLY = Stopped("stopped before the first step", todo="run the same command to start again")


def print_error(failure: Failure) -> None:
    """Print a failure as one line on stderr; of a run's processes, only the main one prints it."""
    if main_process():
        print(f"error: {failure}", file=sys.stderr)


def main_process() -> bool:
    """Whether this is the main one of a run's processes, which prints for all of them."""
    return os.environ.get("RANK", "0") == "0"


def interrupt(number: int, frame: FrameType | None) -> None:
    """The signal handler before a run installs its own: raises KeyboardInterrupt; during an import, exits.

    An exception from a half-imported module could turn into any other error.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            print_error(EARLY)
            os._exit(Stopped.code)
        frame = frame.f_back
    raise KeyboardInterrupt
