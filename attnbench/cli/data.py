"""``attnbench data``: fetch, check, convert or pack a data set before a run uses it."""

from __future__ import annotations

import os
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
attnbench data: fetch, check, convert or pack a data set before a run uses it.

  attnbench data fetch NAME [DIR]  transfer and unpack cifar10, cifar100, voc2007, voc2012, coco2017 or imagenette
      imagenet --from SRC              ... or unpack ImageNet's official archives, which you have
  attnbench data check DIR         list what is wrong with it, one problem a line; exit code 3 if there is any
  attnbench data convert SRC DST   write an export of Roboflow, CVAT, LabelImg or YOLO as COCO or VOC; SRC is only read
      [--holdout 0.2]                  ... and hold out a share for validation, if it has a single split
  attnbench data shard SRC DST     pack an image folder into tar files of WebDataset's form; SRC may be older shards
      [--short-side N] [--quality Q]   ... with smaller images: a changed protocol, which every result reports

`attnbench data check --help` (or convert, fetch, shard) shows all options.
"""

READERS = 16  # reading threads: more than cores, since reading from a network file system is mostly waiting
SHARD_BYTES = 2**29


def main() -> None:
    """``attnbench data check|convert|fetch|shard ...``."""
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
    from attnbench.data.images.checking import About
    from attnbench.data.layouts import recognise

    known = recognise(root)
    problems = notes = 0
    total = known.size(root)
    with warnings.catch_warnings(), console.counting(total, "images") as advance:
        warnings.simplefilter("ignore")  # Pillow's warnings do not name the file
        for finding in known.check(root, lambda: advance(1), cores()):
            print(finding, flush=True)
            if isinstance(finding, About):
                continue
            problems, notes = problems + (not finding.harmless), notes + finding.harmless
    print(f"{known.name}: {total:,} images, {_counted(problems, 'problem')}, {_counted(notes, 'note')}")
    if problems:
        raise DataError(_counted(problems, "problem"), root, "see the lines above")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


# attnbench data convert


def convert() -> None:
    """``attnbench data convert SRC DST [--holdout SHARE]``.

    Raises:
        DataError: SRC is not an export of a known tool, or a file in it cannot be read.
        StorageError: DST exists or cannot be written.
        Stopped: a signal was received.
    """
    parser = CommandParser(
        prog="attnbench data convert", description="Write the export of an annotation tool as a COCO or VOC data set."
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="the folder that the tool exported; it is only read")
    parser.add_argument("target", metavar="DST", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--holdout", type=_share, metavar="SHARE", help="hold out a share for validation, such as 0.2")
    options = parser.parse()
    source, target = options.source.expanduser().resolve(), options.target.expanduser().resolve()
    if source in (target, *target.parents) or target in source.parents:
        raise ConfigError("one of the folders is in the other", target, "choose another folder for DST")
    from attnbench.data.exports import tools
    from attnbench.data.exports.export import converted, held_out

    export = tools.known(source)(source)
    if options.holdout:
        export = held_out(export, options.holdout)
    try:
        with console.counting(export.files, "images") as advance:
            converted(export, target, lambda: advance(1))
    except KeyboardInterrupt:
        raise Stopped("stopped by a signal", target, "nothing was written; run the same command again") from None
    counts = ", ".join(f"{split} {len(pictures):,}" for split, pictures in export.pictures.items())
    print(f"{export.tool}: {_counted(export.files, 'image')}: {counts}")
    for line in export.said:
        print(line)
    print(_usage(options.target, export.kind, list(export.pictures)))


def _usage(target: Path, kind: str, splits: list[str]) -> str:
    """The options with which a run uses converted data."""
    train = next((name for name in splits if name.startswith("train")), splits[0])
    val = next((name for name in splits if name.startswith("val")), splits[-1])
    more = "; it has one split: see --holdout" if len(splits) == 1 else ""
    if kind == "coco":
        return f"use it with dataset=coco dataset.root={target} dataset.train={train} dataset.val={val}{more}"
    words = f"dataset.train=[{train}] dataset.val=[{val}] dataset.classes=found"
    return f"use it with dataset=voc dataset.root={target} {words}{more}"


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise ValueError(text)
    return number


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
        prog="attnbench data shard",
        description="Pack an image folder into tar files of WebDataset's form, with an index of checksums. "
        "Shards of an earlier release are converted.",
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="an image folder with train/ and val/, or shards")
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
    from attnbench.data.image_folders.folder import left_out_line

    if (target / "train").is_dir() or source.resolve() == target.resolve():
        what = "this is an image folder" if (target / "train").is_dir() else "SRC and DST are the same folder"
        raise ConfigError(what, target, "choose another folder for the shards")
    if any(target.glob("*.shard")):
        todo = f"choose an empty folder; attnbench data shard {target} NEW converts finished ones"
        raise ConfigError("these are shards of an earlier release", target, todo)
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
        sharding.finish(target, classes, planned)
    images = sum(len(one.images) for one in planned)
    for side in {one.source.side.name: one.source.side for one in planned}.values():
        if line := left_out_line(side.left_out, f"{side.name}/: "):
            print(line)
    print(f"{images:,} images, {len(classes):,} classes, {_counted(len(planned), 'shard')}")
    if changed := planned[0].changed:
        print(f"changed protocol: {changed}; every result reports it")
    print(f"use the shards with dataset.root={target}")


# attnbench data fetch


def fetch() -> None:
    """``attnbench data fetch NAME [DIR] [--from SRC]``; repeat a stopped call to continue it.

    Raises:
        ConfigError: there is no data set of this name, or the file of addresses is invalid.
        DataError: an archive cannot be transferred, is not the published one, or is damaged.
        StorageError: DIR cannot be written.
        BusyError: another process writes to DIR.
        Stopped: a signal was received.
    """
    from attnbench.data.fetching.fetch import fetch as fetch_into
    from attnbench.data.fetching.releases import OURS, releases

    parser = CommandParser(
        prog="attnbench data fetch",
        description="Transfer, verify and unpack a published data set; a stopped call is continued. "
        f"Data sets: {', '.join(releases())}.",
    )
    parser.add_argument("name", metavar="NAME", help="the data set")
    parser.add_argument("target", metavar="DIR", type=Path, nargs="?", help="default: its folder in $ATTNBENCH_DATA")
    parser.add_argument("--from", dest="own", metavar="SRC", type=Path, help="a folder with archives that you have")
    parser.add_argument("--keep", action="store_true", help="keep transferred archives, in DIR/.fetch")
    parser.add_argument("--addresses", metavar="FILE", type=Path, default=OURS, help="other addresses and hashes")
    options = parser.parse()
    known = releases(options.addresses.expanduser())
    if options.name not in known:
        raise ConfigError(f"unknown data set {options.name}", "attnbench data fetch", nearest(options.name, known))
    release = known[options.name]
    own = options.own.expanduser() if options.own else None
    if own and not own.is_dir():
        raise DataError("there is no such folder", own, "name the folder with the archives")
    default = Path(os.environ.get("ATTNBENCH_DATA", "data")) / (release.folder or options.name)
    target = (options.target or default).expanduser()
    files.make_folder(target, "choose another folder")
    try:
        with RunFolder(target).hold():
            said = fetch_into(release, target, own, options.keep)
    except KeyboardInterrupt:
        raise Stopped("stopped by a signal", target, "run the same command to continue") from None
    except BusyError as error:
        raise BusyError("another process is fetching data here", target, "wait for it or stop it") from error
    for line in said:
        print(line)
    print(f"{release.title}: use it with {release.use} dataset.root={target}")


COMMANDS: dict[str, Callable[[], None]] = {"check": check, "convert": convert, "fetch": fetch, "shard": shard}
