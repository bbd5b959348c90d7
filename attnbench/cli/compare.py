"""``attnbench compare``: compare runs, as a table, CSV, Markdown and a picture."""

from __future__ import annotations

from pathlib import Path

from attnbench.base import console
from attnbench.cli.parser import CommandParser
from attnbench.reports.comparison import Comparison, compare
from attnbench.reports.comparison_formats import HEADS, cells, remarks, write
from attnbench.runs import results
from attnbench.training.metrics.titles import headline


def main() -> None:
    """``attnbench compare RUNS... [--by KEY] [--metric M] [--baseline KEY=VALUE] [--output DIR]``."""
    parser = CommandParser(prog="attnbench compare", description="Compare runs: what differs, and its effect.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, their parent folders, or quoted patterns")
    parser.add_argument("--by", metavar="KEY", help="the key on the plot's x axis, such as attention.kernel_size")
    parser.add_argument("--metric", help="a number of result.json (default: top1, or a detector's AP or mAP)")
    parser.add_argument("--baseline", metavar="KEY=VALUE", help="compare with these runs (default: attention=none)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go (default: outputs/compare)")
    options = parser.parse()
    found = results.find(options.runs)
    headlines = filter(None, (headline(run.result) for run in found))
    metric = options.metric or next((name for name, _ in headlines), "top1")
    comparison = compare(found, by=options.by, metric=metric, baseline=options.baseline)
    _show(comparison)
    for path in write(comparison, options.output or results.outputs() / "compare"):
        print(path)


def _show(comparison: Comparison) -> None:
    """Print the table and its remarks."""
    from rich.table import Table

    table = Table(*comparison.keys, *HEADS, title=comparison.title)
    for group in comparison.groups:
        table.add_row(*cells(comparison, group))
    console.show(table, *remarks(comparison))
