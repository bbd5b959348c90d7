"""A report as text, Markdown, CSV, LaTeX, HTML or JSON. Each format has the title, which names a changed protocol."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnbench.base import escape
from attnbench.base.console import plain_console
from attnbench.reports import writing
from attnbench.reports.paper_tables import Column
from attnbench.reports.report import BEST, COMPARED, FOLDED, MEASURED, Cell, Line, Report, Trace, as_dict, remarks
from attnbench.reports.statistics import Paired

WIDTH = 400  # width in characters of a table that does not go to a terminal


@dataclass(frozen=True)
class Grid:
    """A report's headings and rows as text."""

    headings: list[str]
    rows: list[list[str]]


def grid(made: Report) -> Grid:
    """Turn a report into headings and rows of text."""
    headings, texts = ["row"], [lambda line: line.label]
    for name, column in made.chosen.table.columns.items():
        for heading, cell_text in _columns(name, column, made):
            headings.append(heading)
            texts.append(cell_text)
    return Grid(headings, [[cell_text(line) for cell_text in texts] for line in made.lines])


CellText = Callable[[Line], str]  # the text of a line's cell in one column


def _columns(name: str, column: Column, made: Report) -> list[tuple[str, CellText]]:
    """The headings and cell texts of the columns that show one column of the paper."""

    def of(text_of: Callable[[Cell], str]) -> CellText:
        return lambda line: text_of(line.cells[name]) if name in line.cells else ""

    printed = (f"{name} {column.unit} printed", of(_printed))
    if column.counter:
        return [printed, (f"{name} ours", of(_counted))]
    if name not in MEASURED:
        return [printed]
    if name in BEST:
        measured = [
            *(printed, (f"{name} last epoch", of(_ours)), (f"{name} best epoch", of(_best))),
            (f"{name} last, best - printed", of(_differences)),
        ]
    else:
        measured = [printed, (f"{name} ours", of(_ours)), (f"{name} difference", of(_difference))]
    if name in FOLDED:
        measured.insert(2, (f"{name} folded", of(_folded)))
    if name == COMPARED[0] and any(line.baseline for line in made.lines):
        measured.append((f"{name} to baseline [95 %]", lambda line: _paired(line, name)))
    return measured


def _printed(cell: Cell) -> str:
    return f"{cell.printed} ± {cell.printed_std}" if cell.printed_std else cell.printed


def _counted(cell: Cell) -> str:
    if not isinstance(cell.ours, int):
        return ""
    inexact = f"{cell.ours / cell.per:.{_digits(cell)}f} ({cell.ours:,})" if cell.per != 1 else f"{cell.ours:,}"
    return inexact if cell.matched else f"{inexact} not as printed"


def _ours(cell: Cell) -> str:
    if cell.ours is None:
        return cell.state
    gap = "" if cell.state == "done" else f"; {cell.state}"
    return f"{_spread(cell.ours, cell.std, cell.n, _digits(cell))}{gap}"


def _best(cell: Cell) -> str:
    return _spread(cell.best.mean, cell.best.std, cell.best.n, _digits(cell)) if cell.best else ""


def _folded(cell: Cell) -> str:
    return _spread(cell.folded.mean, cell.folded.std, cell.folded.n, _digits(cell)) if cell.folded else ""


def _spread(mean: float, std: float | None, n: int, digits: int) -> str:
    return f"{mean:.{digits}f} (n=1)" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f} (n={n})"


def _difference(cell: Cell) -> str:
    return "" if cell.difference is None else f"{cell.difference:+.{_digits(cell)}f}"


def _differences(cell: Cell) -> str:
    both = (cell.difference, cell.best_difference)
    return ", ".join(f"{one:+.{_digits(cell)}f}" for one in both if one is not None)


def _paired(line: Line, name: str) -> str:
    if line.baseline is None:
        return ""
    if name not in line.paired:
        return f"no pair with {line.baseline}"
    return f"{_interval(line.paired[name], _digits(line.cells[name]))} to {line.baseline}"


def _interval(paired: Paired, digits: int) -> str:
    if paired.low is None:
        return f"{paired.mean:+.{digits}f} (n=1)"
    return f"{paired.mean:+.{digits}f} [{paired.low:+.{digits}f}, {paired.high:+.{digits}f}] (n={paired.n})"


def _digits(cell: Cell) -> int:
    return len(cell.printed.partition(".")[2]) or 2


def _notes(made: Report) -> list[str]:
    """The remarks, the table's notes, and the notes of rows and cells with the rows' labels."""
    about: dict[str, list[str]] = {}
    for line in made.lines:
        for note in dict.fromkeys([line.note, *(cell.note for cell in line.cells.values())]):
            if note:
                about.setdefault(note, []).append(line.label)
    noted = [f"{', '.join(labels)}: {note}" for note, labels in about.items()]
    return [*remarks(made), *made.chosen.table.notes, *noted]


def _traces(made: Report) -> list[list[str]]:
    """A row for each run, with its folder, commit and device."""
    return [_traced(label, trace) for label, trace in made.traces]


def _traced(label: str, trace: Trace) -> list[str]:
    value = "" if trace.value is None else f"{trace.value:.3f}"
    state = f"{trace.state}: {trace.reason}" if trace.reason else trace.state
    return [label, str(trace.seed), state, value, trace.folder, trace.commit or "", trace.device or ""]


TRACED = ["row", "seed", "state", "result", "folder", "commit", "device"]


def text(reports: Sequence[Report], width: int = WIDTH, colour: bool = False) -> str:
    """Reports as tables for a terminal."""
    from rich import box
    from rich.table import Table

    written = io.StringIO()
    console = plain_console(file=written, width=width, force_terminal=colour, soft_wrap=False)
    for made in reports:
        contents = grid(made)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in contents.headings:
            table.add_column(escape.visible(heading), overflow="fold")
        for row in contents.rows:
            table.add_row(*(escape.visible(cell, "\n") for cell in row))
        console.print(escape.visible(made.title), style="bold")
        console.print(table)
        for note in _notes(made):
            console.print(f"- {escape.visible(note)}")
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def markdown(reports: Sequence[Report]) -> str:
    """Reports as Markdown: a section for each table, with a list of its runs."""
    parts = []
    for made in reports:
        contents = grid(made)
        parts += writing.markdown_heading(2, made.title)
        parts += [*writing.markdown_table(contents.headings, contents.rows), "", *writing.markdown_list(_notes(made))]
        parts += ["", "Runs:", "", *writing.markdown_table(TRACED, _traces(made)), ""]
    return "\n".join(parts)


CSV = (
    "table", "title", "changed_protocol", "row", "column", "unit", "printed", "printed_std", "ours", "std", "n",
    "seeds", "state", "difference", "best_epoch_mean", "best_epoch_std", "baseline", "paired_difference",
    "paired_low", "paired_high", "paired_n", "note",
)  # fmt: skip


def comma_separated(reports: Sequence[Report]) -> str:
    """Reports as CSV: a line for each cell, numbers in full precision."""
    return writing.csv_table(
        CSV,
        (_flat(made, line, name, cell) for made in reports for line in made.lines for name, cell in line.cells.items()),
    )


def _flat(made: Report, line: Line, name: str, cell: Cell) -> dict[str, object]:
    paired = line.paired.get(name)
    values = {key: getattr(cell, key) for key in ("unit", "printed", "printed_std", "ours", "std", "state", "note")}
    return values | {
        "table": made.chosen.table.id,
        "title": made.title,
        "changed_protocol": made.chosen.changed,
        "row": line.label,
        "column": name,
        "n": cell.n if cell.runs else "",
        "seeds": " ".join(str(trace.seed) for trace in cell.runs if trace.value is not None),
        "difference": cell.difference,
        "best_epoch_mean": cell.best and cell.best.mean,
        "best_epoch_std": cell.best and cell.best.std,
        "baseline": line.baseline,
        "paired_difference": paired and paired.mean,
        "paired_low": paired and paired.low,
        "paired_high": paired and paired.high,
        "paired_n": paired and paired.n,
    }


def latex(reports: Sequence[Report]) -> str:
    """Reports as LaTeX tables, which need the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for made in reports:
        contents = grid(made)
        parts += writing.latex_comments(_notes(made))
        parts += writing.latex_table(made.title, contents.headings, contents.rows, remarks(made))
    return "\n".join([*parts, ""])


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem}table{border-collapse:collapse;margin:1rem 0}"
    "th,td{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:left;font-variant-numeric:tabular-nums}"
    ".changed{color:#a00}footer{color:#555;font-size:.9em}"
)


def page(reports: Sequence[Report]) -> str:
    """Reports as a single HTML page that needs no other file."""
    parts = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">']
    parts += [f"<title>{escape.html('; '.join(made.title for made in reports))}</title>"]
    parts += [f"<style>{STYLE}</style></head><body>"]
    for made in reports:
        contents = grid(made)
        changed = ' class="changed"' if made.chosen.changed else ""
        parts += [f"<h2{changed}>{escape.html(made.title)}</h2>", *writing.html_table(contents.headings, contents.rows)]
        parts += ["<footer>", *writing.html_list(_notes(made)), *writing.html_table(TRACED, _traces(made)), "</footer>"]
    return "\n".join([*parts, "</body></html>", ""])


def as_json(reports: Sequence[Report]) -> str:
    """One report as a JSON object, several as a list."""
    made = [as_dict(report) for report in reports]
    return json.dumps(made[0] if len(made) == 1 else made, indent=2) + "\n"


FORMATS: dict[str, Callable[[Sequence[Report]], str]] = {
    "text": text,
    "md": markdown,
    "csv": comma_separated,
    "latex": latex,
    "html": page,
    "json": as_json,
}
