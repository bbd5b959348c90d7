"""Command lines of the commands beside ``train``: a few flags, and Hydra's overrides."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from attnbench.errors import ConfigError


class Words(argparse.ArgumentParser):
    """argparse, with complaints in our one line. ``taken()`` reads the words behind the command's name."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, "command line", f"{self.prog} --help shows what there is")

    def taken(self) -> argparse.Namespace:
        """The command's words, flags and overrides in any order; ``debug=true`` is for all commands alike."""
        return self.parse_intermixed_args([word for word in sys.argv[1:] if word != "debug=true"])


def overriding(command: str, about: str) -> Words:
    """A parser of a command that takes overrides."""
    words = Words(prog=f"attnbench {command}", description=about)
    words.add_argument("overrides", nargs="*", metavar="key=value", help="as for train: attention=eca")
    return words
