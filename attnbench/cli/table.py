"""``attnbench table``: list, count, plan, run and report the papers' tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.base import console, files
from attnbench.base.errors import ConfigError, StorageError
from attnbench.cli.parser import CommandParser, count, find_ids_and_overrides, seeds
from attnbench.config import catalog, hydra_state, option_files
from attnbench.config.configuration import Config
from attnbench.launch import executor, hydra_launchers
from attnbench.launch.progress import watcher
from attnbench.reports import counts, formats, paper_tables, plan
from attnbench.reports.composer import Composer
from attnbench.reports.report import Report, report
from attnbench.reports.rows import Chosen, Listed, RowRun, choose, in_order, listed, matching, warning
from attnbench.runs.attempt import Outcome
from attnbench.runs.data import DataCheck

if TYPE_CHECKING:
    from torch import nn

    from attnbench.models import complexity


def main() -> None:
    """``attnbench table [ID ...] [--count | --plan | --run] ...``."""
    options = _options()
    if options.tally:
        _tally(options)
    elif options.count:
        _count(options)
    elif not options.ids:
        _list(options)
    elif options.plan:
        _plan(options)
    elif options.run:
        _run(options)
    else:
        composer = _composer(options)
        _show(_reports(_asked(options, composer), composer, {}), options)


def _options() -> argparse.Namespace:
    parser = CommandParser(prog="attnbench table", description="List, plan, run and report the tables of both papers.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="such as sb/5, and key=value; without an ID, list all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--count", action="store_true", help="compare printed parameters and operations with ours")
    what.add_argument(
        "--tally", action="store_true", help="count all tables of both papers: what is matched, and what not"
    )
    what.add_argument("--plan", action="store_true", help="list the runs, their state and about how long they take")
    what.add_argument("--run", action="store_true", help="run what is missing, then report")
    parser.add_argument(
        "--seeds", type=seeds, help="3 for seeds 0, 1 and 2, or a list such as 0,1,4 (default: as many as in the paper)"
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="PATTERN", help="only these rows, such as 'SB x0.35*'")
    parser.add_argument(
        "--scale",
        nargs="+",
        default=[],
        metavar="key=value",
        help="change the setting of all rows, or of one table's: eca/2:key=value",
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ROW=RUN|FILE",
        help="trained weights for the rows that start from others, instead of training those first; may be repeated",
    )
    parser.add_argument("--outputs", help="the folder of runs (default: outputs, or ATTNBENCH_OUTPUTS)")
    parser.add_argument(
        "--launcher", choices=hydra_launchers.names(), help="default: pool; its options are hydra.launcher.KEY=VALUE"
    )
    parser.add_argument("--slots", type=count, help="runs at a time (default: as many as fit)")
    parser.add_argument("--no-probe", dest="probe", action="store_false", help="plan without estimating hours")
    parser.add_argument("--format", choices=formats.FORMATS, default="text", help="default: %(default)s")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of stdout")
    options = parser.parse()
    find_ids_and_overrides(options, paper_tables.ids(), ("rows", "scale"))
    options.launching = [one for one in (*options.overrides, *options.scale) if _is_of_launcher(one)]
    options.overrides = [one for one in options.overrides if not _is_of_launcher(one)]
    options.scale = [one for one in options.scale if not _is_of_launcher(one)]
    return options


def _is_of_launcher(override: str) -> bool:
    return override.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))


# The rows and seeds of the command line


def _composer(options: argparse.Namespace) -> Composer:
    weights = [one.partition("=") for one in options.weights]
    if wrong := next((row for row, equals, path in weights if not (row and equals and path)), None):
        raise ConfigError(f"{wrong} does not name weights", "--weights", "write ROW=RUN or ROW=FILE")
    return Composer([*options.scale, *options.overrides], options.outputs, {row: path for row, _, path in weights})


def _asked(options: argparse.Namespace, composer: Composer) -> list[Chosen]:
    """Choose and compose the rows of the tables on the command line.

    Raises:
        ConfigError: a table or row does not exist, or a row cannot be composed.
    """
    tables = [_buildable(name) for name in options.ids]
    rows = matching(tables, options.rows)
    with hydra_state.prepared():
        chosen = [choose(one, rows[one.id], options.seeds, composer, _lacking) for one in tables if rows[one.id]]
    if unused := composer.weights.keys() - composer.used.keys():
        starts = dict.fromkeys(source.label for some in chosen for source in some.sources.values())
        todo = f"name one of {', '.join(starts)}" if starts else "none of these rows starts from trained weights"
        raise ConfigError(f"{min(unused)} names no row that others start from", "--weights", todo)
    return chosen


def _buildable(name: str) -> paper_tables.Table:
    one = paper_tables.load(name)
    if missing := _missing(one):
        raise ConfigError(f"{name} needs task={missing}, which is missing", "command line", "choose another table")
    return one


def _missing(one: paper_tables.Table) -> str:
    """The task that a table needs but that has no option file; empty if there is none."""
    return one.requires if one.requires and one.requires not in option_files.names("task") else ""


def _sketch(composed: Config) -> tuple[nn.Module, complexity.Size]:
    from attnbench.models import factory

    return factory.counting_sketch(composed)


def _lacking(composed: Config) -> str:
    """What a given file of weights lacks for a network; empty if it fits.

    Raises:
        StorageError: the weights do not fit.
    """
    from attnbench.models import factory

    loaded = factory.fitted(composed, catalog.class_count(composed))
    return f"without attention, by {loaded.layout} names" if loaded.sites else ""


# attnbench table


def _list(options: argparse.Namespace) -> None:
    for option, given in (("--plan", options.plan), ("--run", options.run), ("--rows", options.rows)):
        if given:
            raise ConfigError(f"{option} needs a table", "command line", "name one, such as sb/5")
    composer = _composer(options)
    every, changed = [], ""
    done: dict[Path, bool] = {}
    data_check = DataCheck()
    with hydra_state.prepared(), console.waiting("composing every row of every table"):
        for one in map(paper_tables.load, paper_tables.ids()):
            if missing := _missing(one):
                every.append(Listed(one.id, one.title, one.source, len(one.rows), needs=missing))
                continue
            chosen = choose(one, one.rows, options.seeds, composer)
            every.append(listed(chosen, done, data_check))
            changed = changed or chosen.changed
    if options.format == "json":
        about = {"changed_protocol": changed, "runs_done": sum(done.values()), "runs": len(done)}
        _write(json.dumps({"tables": [vars(one) for one in every], **about}, indent=2) + "\n", options)
    else:
        _print_list(every, sum(done.values()), len(done), changed)


def _print_list(every: Iterable[Listed], done: int, total: int, changed: str) -> None:
    from rich.table import Table

    drawn = Table("table", "cells run", "runs done", "title", title=warning(changed) if changed else None)
    for one in every:
        state = ("", f"needs {one.needs}") if one.needs else _of(one)
        drawn.add_row(one.id, *state, one.title)
    console.show(drawn, f"{done} of {total} distinct runs done; a cell is a row with all of its seeds")


def _of(one: Listed) -> tuple[str, str]:
    return f"{one.cells_run} / {one.cells}", f"{one.runs_done} / {one.runs}"


# attnbench table ID --count


def _count(options: argparse.Namespace) -> None:
    if not options.ids:
        raise ConfigError("--count needs a table", "command line", "name one, such as sb/5")
    for name in options.ids:
        chosen = _buildable(name)
        counted = counts.count(chosen, _sketch)
        if options.format == "json":
            print(json.dumps(counts.as_dict(chosen, counted), indent=2))
        else:
            _print_counted(chosen, counted)


def _print_counted(
    chosen: paper_tables.Table, counted: list[tuple[paper_tables.Row, dict[str, counts.CountedCell]]]
) -> None:
    from rich.table import Table
    from rich.text import Text

    listing = Table("row", "", "printed", "ours", "matched", title=f"{chosen.title} ({chosen.source})")
    every = [(row, name, cell) for row, cells in counted for name, cell in cells.items()]
    notes = list(dict.fromkeys(cell.note for _, _, cell in every if cell.note))
    for row, name, cell in every:
        ours = f"{cell.ours:,}" if cell.ours is not None else "-"
        remark = f" ({notes.index(cell.note) + 1})" if cell.note else ""
        matched = Text("yes" if cell.matched else "no", "" if cell.matched else "bold") + Text(remark)
        listing.add_row(row.label, name, f"{cell.printed} {cell.unit}", ours, matched)
    remarks = [f"{sum(c.matched for _, _, c in every)} of {len(every)} printed counts matched"]
    remarks += [f"({i}) {note}" for i, note in enumerate(notes, start=1)]
    remarks += [f"- {note}" for note in chosen.notes]
    if every:
        console.show(listing, *remarks)
    else:
        print(*remarks, sep="\n")


# attnbench table --tally


def _tally(options: argparse.Namespace) -> None:
    if options.ids or options.rows or options.scale or options.overrides:
        raise ConfigError("--tally counts all tables as printed", "command line", "use --count for one table")
    tables = [one for one in map(paper_tables.load, paper_tables.printed()) if not _missing(one)]
    with console.waiting("counting the networks of every table"):
        cells = counts.tally(tables, _sketch)
    totals, missed = counts.totals(cells), [one for one in cells if not one.cell.matched]
    if options.format == "json":
        by_kind = {kind: {"matched": matched, "printed": total} for kind, (matched, total) in totals.items()}
        about = [vars(one) | {"cell": vars(one.cell)} for one in missed]
        _write(json.dumps({"counts": by_kind, "not_matched": about}, indent=2) + "\n", options)
        return
    lines = [f"{kind}: {matched} of {total} printed counts matched" for kind, (matched, total) in totals.items()]
    lines += ["", "not matched:", *(f"  {_missed(one)}" for one in missed)]
    _write("\n".join(lines) + "\n", options)


def _missed(one: counts.TalliedCell) -> str:
    cell = one.cell
    ours = f"{cell.ours:,} ours" if cell.ours is not None else "not counted"
    where = f"{one.table} {one.row}: {one.kind} {cell.printed} {cell.unit} printed, {ours}"
    return f"{where}. {cell.note}" if cell.note else where


# attnbench table ID --plan


def _plan(options: argparse.Namespace) -> None:
    chosen = _asked(options, _composer(options))
    planned = plan.planned_runs(chosen, _sketch)
    time = plan.estimate(planned, _probe, _images) if options.probe else None
    if options.format == "json":
        _write(json.dumps(plan.as_dict(chosen, planned, time), indent=2) + "\n", options)
    elif options.format == "text":
        _write("\n".join(plan.lines(chosen, planned, time)) + "\n", options)
    else:
        raise ConfigError(f"a plan cannot be written as {options.format}", "--format", "use text or json")


def _probe(composed: Config) -> plan.Speed:
    from attnbench.runs.probe import seconds_per_image

    name = f"{composed.choices['attention']} on {composed.choices['backbone']}"
    console.complain(f"probing: {name}")
    return plan.Speed(*seconds_per_image(composed))


def _images(composed: Config) -> tuple[int, int] | None:

    return catalog.IMAGES.get(composed.choices["dataset"])


# attnbench table ID --run


def _run(options: argparse.Namespace) -> None:
    """Run what is missing, then report; exit with code 1 if a run failed.

    Every network is first built without weights, so that an error in one is found before the first run starts.
    """
    chosen_launcher = hydra_launchers.chosen(_launching(options))
    composer = _composer(options)
    chosen = _asked(options, composer)
    plan.planned_runs(chosen, _sketch)
    for some in chosen:
        print(some.title, file=sys.stderr)
    members: list[executor.Member] = []
    for group in in_order(run for some in chosen for run in some.runs()):
        failed = {member.folder.path for member in members if member.outcome and member.outcome.failure}
        some_members = [_member(run, failed) for run in group]
        executor.run(some_members, chosen_launcher, watcher())
        members += some_members
    failures = {m.folder.path: str(m.outcome.failure) for m in members if m.outcome and m.outcome.failure}
    _show(_reports(chosen, composer, failures), options)
    if failures:
        console.complain(f"{len(failures)} of {len(members)} runs failed")
        sys.exit(1)


def _member(run: RowRun, failed: Collection[Path]) -> executor.Member:
    """A run as a member; one that starts from a failed run fails with it."""
    member = executor.Member(f"{run.label} seed {run.seed}", run.config)
    if run.start and run.start.path in failed:
        what = f"{run.start.label} seed {run.start.seed}, whose weights this run starts from, failed"
        failure = StorageError(what, run.start.path, "see its reason; the same command runs what is missing")
        member.outcome = Outcome("failed", str(member.folder.path), failure=failure)
    return member


def _launching(options: argparse.Namespace) -> list[str]:
    """The overrides that choose the launcher and its options."""
    overrides = list(options.launching)
    if options.outputs:
        overrides.append(f"paths.outputs={options.outputs}")
    if not any(one.startswith("hydra/launcher=") for one in overrides):
        overrides.append(f"hydra/launcher={options.launcher or 'pool'}")
    elif options.launcher:
        what = f"both --launcher {options.launcher} and hydra/launcher choose a launcher"
        raise ConfigError(what, "command line", "use only one of them")
    if options.slots:
        submitit = any(one.startswith("hydra/launcher=submitit") for one in overrides)
        overrides.append(f"hydra.launcher.{'array_parallelism' if submitit else 'slots'}={options.slots}")
    return overrides


# attnbench table ID


def _reports(chosen: Sequence[Chosen], composer: Composer, failures: dict[Path, str]) -> list[Report]:
    with hydra_state.prepared():
        return [
            report(some, lambda row, one=some.table: counts.cells(one, row, _sketch, composer), failures)  # type: ignore[misc]
            for some in chosen
        ]


def _show(reports: Sequence[Report], options: argparse.Namespace) -> None:
    if options.format == "text" and not options.output and sys.stdout.isatty():
        from rich.console import Console

        print(formats.text(reports, Console().width, colour=True), end="")
    else:
        _write(formats.FORMATS[options.format](reports), options)


def _write(text: str, options: argparse.Namespace) -> None:
    if options.output is None:
        print(text, end="")
    else:
        files.make_folder(options.output.parent)
        files.write(options.output, lambda file: file.write(text.encode()))
        console.say(options.output)
