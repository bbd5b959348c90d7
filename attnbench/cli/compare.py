"""``attnbench compare``: compare runs, as a table, CSV, Markdown and a picture; test two settings on their pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from attnbench.base import console, escape, files
from attnbench.cli.parser import CommandParser, count
from attnbench.reports import writing
from attnbench.reports.comparison import Comparison, compare
from attnbench.reports.comparison_formats import HEADS, cells, remarks, write
from attnbench.reports.paired_tests import RESAMPLES, Kind, paired_tests
from attnbench.runs import results
from attnbench.training.metrics.titles import headline


def main() -> None:
    """``attnbench compare RUNS... [--by KEY] [--metric M] [--baseline KEY=VALUE] [--test KIND] [--output DIR]``."""
    parser = CommandParser(prog="attnbench compare", description="Compare runs: what differs, and its effect.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, their parent folders, or quoted patterns")
    parser.add_argument("--by", metavar="KEY", help="the key on the plot's x axis, such as attention.kernel_size")
    parser.add_argument("--metric", help="a number of result.json (default: top1, or a detector's AP or mAP)")
    parser.add_argument("--baseline", metavar="KEY=VALUE", help="compare with these runs (default: attention=none)")
    parser.add_argument(
        "--test",
        choices=get_args(Kind),
        help="test two settings picture by picture, seed by seed: McNemar's exact test, or a paired bootstrap",
    )
    parser.add_argument("--resamples", type=count, default=RESAMPLES, help="of --test bootstrap (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go (default: outputs/compare)")
    options = parser.parse()
    output = options.output or results.outputs() / "compare"
    if options.test:
        _test(options, output)
        return
    found = results.find(options.runs)
    headlines = filter(None, (headline(run.result) for run in found))
    metric = options.metric or next((name for name, _ in headlines), "top1")
    comparison = compare(found, by=options.by, metric=metric, baseline=options.baseline)
    _show(comparison)
    for path in write(comparison, output):
        console.say(path)


def _show(comparison: Comparison) -> None:
    """Print the table and its remarks."""
    from rich.table import Table

    table = Table(*map(escape.visible, comparison.keys), *HEADS, title=comparison.title)
    for group in comparison.groups:
        table.add_row(*cells(comparison, group))
    console.show(table, *remarks(comparison))


def _test(options: argparse.Namespace, output: Path) -> None:
    """Print the table of a paired test, and write it as CSV."""
    from rich.table import Table

    runs = {run.folder.resolve(): run for pattern in options.runs for run in results.find([pattern])}  # in their order
    found = paired_tests(list(runs.values()), options.test, options.metric, options.resamples)
    table = Table(*found.columns, title=found.title)
    for row in found.rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console.show(table, *found.notes)
    files.make_folder(output)
    path = output / f"{options.test}.csv"
    content = writing.csv_lines([found.columns, *found.rows]).encode()
    files.write(path, lambda file: file.write(content))
    console.say(path)
