"""``attnbench data``: check or pack a data set before a run uses it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from attnbench.base import console, files
from attnbench.base.cores import cores
from attnbench.base.errors import BusyError, ConfigError, DataError, Stopped, nearest
from attnbench.cli.parser import CommandParser
from attnbench.runs.folder import RunFolder

USAGE = """\
attnbench data: check or pack a data set before a run uses it.

  attnbench data check DIR         list what is wrong with it, one problem a line; exit code 3 if there is any
  attnbench data shard SRC DST     pack an image folder into a few large files with checksums
      [--short-side N] [--quality Q]   ... with smaller images: a changed protocol, which every result reports

`attnbench data check --help` and `attnbench data shard --help` show all options.
"""

READERS = 16  # reading threads: more than cores, since reading from a network file system is mostly waiting
SHARD_BYTES = 2**29


def main() -> None:
    """``attnbench data check|shard ...``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if arguments[0] not in COMMANDS:
        raise ConfigError(f"unknown subcommand {arguments[0]}", "attnbench data", nearest(arguments[0], COMMANDS))
    sys.argv = [f"attnbench data {arguments[0]}", *arguments[1:]]
    COMMANDS[arguments[0]]()


# attnbench data check


def check() -> None:
    """``attnbench data check DIR``: print a line for each finding.

    Raises:
        DataError: the data set has problems, or the folder contains no known kind of data set.
    """
    parser = CommandParser(prog="attnbench data check", description="List the problems of a data set, one a line.")
    parser.add_argument("root", metavar="DIR", type=Path, help="an image folder, shards of one, a VOC or a COCO folder")
    root = parser.parse().root.expanduser()
    from attnbench.data.layouts import recognise

    known = recognise(root)
    problems = notes = 0
    total = known.size(root)
    with warnings.catch_warnings(), console.counting(total, "images") as advance:
        warnings.simplefilter("ignore")  # Pillow's warnings do not name the file
        for finding in known.check(root, lambda: advance(1), cores()):
            console.say(finding)
            problems, notes = problems + (not finding.harmless), notes + finding.harmless
    print(f"{known.name}: {total:,} images, {_counted(problems, 'problem')}, {_counted(notes, 'note')}")
    if problems:
        raise DataError(_counted(problems, "problem"), root, "see the lines above")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


# attnbench data shard


def shard() -> None:
    """``attnbench data shard SRC DST [--short-side N [--quality Q]]``; repeat a stopped call to continue it.

    Raises:
        DataError: SRC is not an image folder, or an image cannot be read.
        StorageError: DST cannot be written, or contains shards of something else.
        BusyError: another process writes to DST.
        Stopped: a signal was received.
    """
    parser = CommandParser(
        prog="attnbench data shard", description="Pack an image folder into a few large files with checksums."
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="an image folder with train/ and val/")
    parser.add_argument("target", metavar="DST", type=Path, help="the folder for the shards, later dataset.root=DST")
    parser.add_argument("--short-side", type=_positive, metavar="N", help="shrink larger images: shorter side N pixels")
    parser.add_argument("--quality", type=_positive, metavar="Q", help="JPEG quality of shrunk images (default: 90)")
    parser.add_argument(
        "--shard-size", type=_positive, metavar="MIB", default=SHARD_BYTES >> 20, help="default: %(default)s"
    )
    options = parser.parse()
    if options.quality and (not options.short_side or options.quality > 100):
        todo = "use at most 100, and set --short-side"
        raise ConfigError(f"quality {options.quality} is not valid here", "--quality", todo)
    source, target = options.source.expanduser(), options.target.expanduser()
    try:
        _shard(source, target, options.short_side, options.quality or 90, options.shard_size << 20)
    except KeyboardInterrupt:
        raise Stopped("stopped by a signal", target, "run the same command to continue") from None
    except BusyError as error:
        raise BusyError("another process is writing shards here", target, "wait for it or stop it") from error


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _shard(source: Path, target: Path, short_side: int | None, quality: int, shard_bytes: int) -> None:
    from attnbench.data.image_folders import sharding

    if (target / "train").is_dir():
        raise ConfigError("this is an image folder", target, "choose another folder for the shards")
    resizing = sharding.Resizing(short_side, quality) if short_side else None
    classes, planned = sharding.plan(source, target, resizing, shard_bytes)
    threads = cores() if resizing else READERS
    files.make_folder(target, sharding.TODO)
    with RunFolder(target).hold(), console.counting(sum(one.bytes for one in planned), "bytes") as advance:
        for one in planned:
            if sharding.is_written(one):
                advance(one.bytes)
            else:
                sharding.write(one, resizing, threads, advance)
        sharding.finish(target, classes, planned, resizing)
    images = sum(len(one.images) for one in planned)
    print(f"{images:,} images, {len(classes):,} classes, {_counted(len(planned), 'shard')}")
    if resizing:
        print(f"changed protocol: {resizing}; every result reports it")
    console.say(f"use the shards with dataset.root={target}")


COMMANDS: dict[str, Callable[[], None]] = {"check": check, "shard": shard}
