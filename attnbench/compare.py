"""``attnbench compare``: any set of runs as a table, CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnbench import printing, results, storage
from attnbench.comparison import Comparison, Group, compare, text
from attnbench.figures import files, sweep
from attnbench.measures import headline
from attnbench.words import Words


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each group, as the CSV file has it: numbers in full, an empty cell where there is none."""
    return [
        {
            **{key: text(value) for key, value in group.values.items()},
            "metric": comparison.metric,
            "mean": group.mean,
            "std": _cell(group.std),
            "n": len(group.scores),
            "seeds": " ".join(map(str, group.scores)),
            "missing_seeds": " ".join(map(str, group.missing)),
            "baseline": group.baseline,
            "difference": _cell(group.against.mean if group.against else None),
            "low": _cell(group.against.low if group.against else None),
            "high": _cell(group.against.high if group.against else None),
            "pairs": group.against.n if group.against else "",
            "runs": " ".join(str(run.folder) for run in group.runs),
        }
        for group in comparison.groups
    ]


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


def as_csv(comparison: Comparison) -> str:
    table = rows(comparison)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


HEADS = ("mean ± std", "n", "difference [95 %]")


def cells(comparison: Comparison, group: Group) -> list[str]:
    """A group's line in a printed table."""
    several = len(bases(comparison)) > 1
    return [
        *(text(value) for value in group.values.values()),
        number(group.mean) + (f" ± {number(group.std)}" if group.std is not None else ""),
        str(len(group.scores)) + (f" (no seed {', '.join(map(str, group.missing))})" if group.missing else ""),
        _difference(group) + (f" to {group.baseline}" if several and group.baseline else ""),
    ]


def bases(comparison: Comparison) -> list[str]:
    """What groups are compared with."""
    return list(dict.fromkeys(group.baseline for group in comparison.groups if group.baseline))


def _difference(group: Group) -> str:
    against = group.against
    if against is None:
        return "no common seed" if group.baseline else ""
    words = f"{against.mean:+,.3f}"
    if against.low is not None and against.high is not None:
        return f"{words} [{against.low:+,.3f}, {against.high:+,.3f}]"
    return f"{words} (one pair, no interval)"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3f}"


def remarks(comparison: Comparison) -> list[str]:
    """What stands below a table."""
    lines = ["± is the sample standard deviation over n seeds; without it n is 1."]
    if bases(comparison):
        what = "Differences are paired by seed, with a Student-t 95 % confidence interval"
        lines.append(f"{what}, to {'; '.join(bases(comparison))}.")
    return [*lines, *comparison.notes, *(f"not finished: {folder}: {why}" for folder, why in comparison.unfinished)]


def as_markdown(comparison: Comparison) -> str:
    heads = [*comparison.keys, *HEADS]
    lines = [f"# {comparison.title}", "", _line(heads), _line("---" for _ in heads)]
    lines += [_line(cells(comparison, group)) for group in comparison.groups]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks(comparison))]) + "\n"


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """compare.csv, compare.md and compare.png in a folder."""
    storage.make_folder(folder)
    contents = {
        "compare.csv": as_csv(comparison).encode(),
        "compare.md": as_markdown(comparison).encode(),
        "compare.png": files.png(sweep.along(comparison), comparison.title, dpi=200),
    }
    for name, content in contents.items():
        storage.write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return [folder / name for name in contents]


def show(comparison: Comparison) -> None:
    """Print the table and its remarks."""
    from rich.table import Table

    table = Table(*comparison.keys, *HEADS, title=comparison.title)
    for group in comparison.groups:
        table.add_row(*cells(comparison, group))
    printing.show(table, *remarks(comparison))


def compare_command() -> None:
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
    show(comparison)
    for path in write(comparison, words.output or results.outputs() / "compare"):
        print(path)
