"""Command lines of the commands beside ``train``: a few flags, and Hydra's overrides."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from attnbench.base.errors import ConfigError


class Words(argparse.ArgumentParser):
    """argparse, with complaints in our one line. ``taken()`` reads the words behind the command's name."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: always, with argparse's message.
        """
        raise ConfigError(message, "command line", f"{self.prog} --help shows what there is")

    def taken(self) -> argparse.Namespace:
        """The command's words, flags and overrides in any order; ``debug=true`` is for all commands alike."""
        return self.parse_intermixed_args([word for word in sys.argv[1:] if word != "debug=true"])


def seeds(text: str) -> list[int]:
    """``3``: seeds 0, 1, 2; ``0,4``: those."""
    if text.isdecimal() and int(text):
        return list(range(int(text)))
    named = [word.strip() for word in text.split(",") if word.strip()]
    if "," not in text or not named or not all(word.isdecimal() for word in named):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor seeds with commas between them")
    return sorted({int(word) for word in named})


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def overriding(command: str, about: str) -> Words:
    """A parser of a command that takes overrides."""
    words = Words(prog=f"attnbench {command}", description=about)
    words.add_argument("overrides", nargs="*", metavar="key=value", help="as for train: attention=eca")
    return words
