"""The command lines of all commands but ``train``: a few options, and Hydra's overrides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from attnbench.base.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """argparse, whose complaints are our one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: always, with argparse's message.
        """
        raise ConfigError(message, "command line", f"{self.prog} --help shows what there is")

    def parse(self) -> argparse.Namespace:
        """The options and overrides behind the command's name, in any order.

        ``debug=true`` is left out: every command takes it.

        Raises:
            ConfigError: an option is unknown, lacks its value or has a wrong one.
        """
        return self.parse_intermixed_args([argument for argument in sys.argv[1:] if argument != "debug=true"])


def override_parser(command: str, about: str) -> CommandParser:
    """A parser of a command that takes overrides."""
    parser = CommandParser(prog=f"attnbench {command}", description=about)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="same as for train, such as attention=eca")
    return parser


def is_override(argument: str) -> bool:
    """Whether an argument is an override of Hydra's, such as ``epochs=2``, ``~key`` or ``hydra/launcher=pool``.

    An option such as ``--output=DIR`` is none, and neither is a folder such as ``outputs/k=3``.
    """
    key, equals, _ = argument.partition("=")
    is_path = "/" in key and not key.lstrip("+").startswith("hydra/")
    return key.startswith("~") or (bool(equals) and not key.startswith("-") and not is_path)


def find_ids_and_overrides(options: argparse.Namespace, known: Collection[str], lists: Sequence[str]) -> None:
    """Find the ids and overrides of a command line, wherever they are.

    An option with ``nargs="+"`` takes all arguments that follow, so the ids and overrides among them are taken out of
    it again. Only ``scale`` keeps its overrides, which are what it is for.

    Args:
        options: as they were parsed, with the arguments of no option in ``ids``; ``ids`` and ``overrides`` are set.
        known: the ids that there are.
        lists: names of the options with ``nargs="+"``.
    """
    arguments = list(options.ids)
    for name in lists:
        given = getattr(options, name)
        strays = [one for one in given if one in known or (is_override(one) and name != "scale")]
        setattr(options, name, [one for one in given if one not in strays])
        arguments += strays
    options.ids = list(dict.fromkeys(one for one in arguments if not is_override(one)))
    options.overrides = [one for one in arguments if is_override(one)]


def seeds(text: str) -> list[int]:
    """``3``: seeds 0, 1, 2; ``0,4``: those."""
    if text.isdecimal() and int(text):
        return list(range(int(text)))
    named = [part.strip() for part in text.split(",") if part.strip()]
    if "," not in text or not named or not all(part.isdecimal() for part in named):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor seeds with commas between them")
    return sorted({int(part) for part in named})


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)
