"""A comparison of runs as CSV, Markdown and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.reports import writing
from attnbench.reports.comparison import Comparison, Group, text
from attnbench.reports.figures import saving, sweep
from attnbench.reports.figures.panels import CURVES, left_out


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row of the CSV file for each group: numbers in full precision, missing ones as empty cells."""
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
            "is_baseline": group.is_baseline,
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
    """A CSV file: one line for each group, with the columns of ``rows``."""
    table = rows(comparison)
    return writing.csv_table(list(table[0]), table)


BASELINE = "baseline"
HEADS = ("mean ± std", "n", "difference [95 %]")


def cells(comparison: Comparison, group: Group) -> list[str]:
    """A group's row in a printed table."""
    several = len(bases(comparison)) > 1
    return [
        *(text(value) for value in group.values.values()),
        number(group.mean) + (f" ± {number(group.std)}" if group.std is not None else ""),
        str(len(group.scores)) + (f" (no seed {', '.join(map(str, group.missing))})" if group.missing else ""),
        _difference(group) + (f" to {group.baseline}" if several and group.baseline else ""),
    ]


def bases(comparison: Comparison) -> list[str]:
    """The labels of the baselines."""
    return list(dict.fromkeys(group.baseline for group in comparison.groups if group.baseline))


def _difference(group: Group) -> str:
    against = group.against
    if against is None:
        return BASELINE if group.is_baseline else "no common seed" if group.baseline else ""
    difference = f"{against.mean:+,.3f}"
    if against.low is not None and against.high is not None:
        return f"{difference} [{against.low:+,.3f}, {against.high:+,.3f}]"
    return f"{difference} (one pair, no interval)"


def number(value: float) -> str:
    """A number as text: rounded to an integer from 10,000 on, else to three decimals."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3f}"


def remarks(comparison: Comparison) -> list[str]:
    """The lines below a table."""
    lines = ["± is the sample standard deviation over n seeds; a value without ± has n = 1."]
    if bases(comparison):
        what = "Differences are paired by seed, with a Student-t 95 % confidence interval"
        lines.append(f"{what}, to {'; '.join(bases(comparison))}.")
    cut = left_out(comparison, comparison.axis)
    return [
        *lines,
        *filter(None, [cut]),
        *comparison.notes,
        *(f"not finished: {folder}: {why}" for folder, why in comparison.unfinished),
    ]


def as_markdown(comparison: Comparison) -> str:
    """The title, a table of the groups, and the remarks."""
    table = [cells(comparison, group) for group in comparison.groups]
    lines = writing.markdown_heading(1, comparison.title)
    lines += [*writing.markdown_table([*comparison.keys, *HEADS], table), ""]
    return "\n".join([*lines, *writing.markdown_list(remarks(comparison))]) + "\n"


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare.csv, compare.md and compare.png to a folder, and return their paths."""
    files.make_folder(folder)
    contents = {
        "compare.csv": as_csv(comparison).encode(),
        "compare.md": as_markdown(comparison).encode(),
        "compare.png": saving.png(
            sweep.along(comparison), comparison.title, dpi=200 if len(comparison.groups) <= CURVES else saving.DPI
        ),
    }
    for name, content in contents.items():
        files.write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return [folder / name for name in contents]
