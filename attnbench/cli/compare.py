"""``attnbench compare``: what differs between runs, as a table, CSV, Markdown and a picture."""

from __future__ import annotations

from pathlib import Path

from attnbench.base import console
from attnbench.cli.parser import Words
from attnbench.reports.comparison import Comparison, compare
from attnbench.reports.comparison_formats import HEADS, cells, remarks, write
from attnbench.runs import results
from attnbench.training.metrics.titles import headline


def main() -> None:
    """``attnbench compare RUNS... [--by KEY] [--metric M] [--baseline KEY=VALUE] [--output DIR]``."""
    parser = Words(prog="attnbench compare", description="What differs between runs, and what it does.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders of runs, folders above them, quoted patterns")
    parser.add_argument("--by", metavar="KEY", help="the key on the picture's axis, such as attention.kernel_size")
    parser.add_argument("--metric", help="a number of result.json (default: top1, or a detector's AP or mAP)")
    parser.add_argument("--baseline", metavar="KEY=VALUE", help="compare with these (default: attention=none)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: outputs/compare")
    words = parser.taken()
    found = results.find(words.runs)
    metric = words.metric or next((told[0] for run in found if (told := headline(run.result))), "top1")
    comparison = compare(found, by=words.by, metric=metric, baseline=words.baseline)
    _show(comparison)
    for path in write(comparison, words.output or results.outputs() / "compare"):
        print(path)


def _show(comparison: Comparison) -> None:
    """Print the table and its remarks."""
    from rich.table import Table

    table = Table(*comparison.keys, *HEADS, title=comparison.title)
    for group in comparison.groups:
        table.add_row(*cells(comparison, group))
    console.show(table, *remarks(comparison))
