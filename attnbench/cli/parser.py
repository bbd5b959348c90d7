"""The command-line parser of all commands except ``train``: options and Hydra overrides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from attnbench.base.errors import ConfigError
from attnbench.config import option_files


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises its errors as ConfigError, which become one line on stderr.

    Every command takes ``--config-dir``, and ``hydra.searchpath`` among its overrides: folders of option files.
    """

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.add_argument(
            *("--config-dir", "-cd"),
            action="append",
            default=[],
            metavar="DIR",
            help="a folder with your own option files, such as DIR/attention/mine.yaml",
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: always, with argparse's message.
        """
        raise ConfigError(message, "command line", f"{self.prog} --help lists the options")

    def parse(self) -> argparse.Namespace:
        """Parse the options and overrides after the command's name, which may come in any order.

        ``debug=true`` is left out, since every command accepts it.

        Raises:
            ConfigError: an option is unknown, lacks its value or has a wrong one.
        """
        places, arguments = searched(argument for argument in sys.argv[1:] if argument != "debug=true")
        options = self.parse_intermixed_args(arguments)
        option_files.add(options.config_dir)
        option_files.add(places, "hydra.searchpath")
        del options.config_dir
        return options


def searched(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The folders that ``hydra.searchpath=[...]`` in a command line names, and the other arguments.

    Raises:
        ConfigError: its value is not a list of folders.
    """
    given = list(arguments)
    if not any("hydra.searchpath" in one for one in given):  # Hydra is slow to import
        return [], given
    from attnbench.config import hydra_state

    return hydra_state.search_path(given)


def override_parser(command: str, about: str) -> CommandParser:
    """A parser for a command that takes overrides."""
    parser = CommandParser(prog=f"attnbench {command}", description=about)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="same as for train, such as attention=eca")
    return parser


def is_override(argument: str) -> bool:
    """Whether an argument is an override: ``epochs=2``, ``~key``, ``hydra/launcher=pool``, ``eca/2:dataset=digits``.

    Options such as ``--output=DIR`` and folders such as ``outputs/k=3`` are not overrides.
    """
    key, equals, _ = argument.partition("=")
    is_path = "/" in key and ":" not in key and not key.lstrip("+").startswith("hydra/")
    return key.startswith("~") or (bool(equals) and not key.startswith("-") and not is_path)


def find_ids_and_overrides(options: argparse.Namespace, known: Collection[str], lists: Sequence[str]) -> None:
    """Find the ids and overrides of a command line, in any order.

    An option with ``nargs="+"`` takes all arguments that follow, so ids and overrides among them are moved out of it.
    Only ``scale`` keeps its overrides, since they are its values.

    Args:
        options: the parsed options, with all positional arguments in ``ids``; sets ``ids`` and ``overrides``.
        known: all valid ids.
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
    """Parse seeds: ``3`` gives 0, 1 and 2; ``0,4`` gives 0 and 4."""
    if text.isdecimal() and int(text):
        return list(range(int(text)))
    named = [part.strip() for part in text.split(",") if part.strip()]
    if "," not in text or not named or not all(part.isdecimal() for part in named):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor a list such as 0,1,4")
    return sorted({int(part) for part in named})


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
