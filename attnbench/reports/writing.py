"""Tables and lists in CSV, Markdown, LaTeX and HTML.

These functions take plain text and escape it for their format, so a report never escapes anything itself.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from attnbench.base import escape

Cells = Sequence[str]


def csv_table(columns: Cells, rows: Iterable[Mapping[str, object]]) -> str:
    """A CSV file: a line of headings, then a line for each row; None becomes an empty cell."""
    return csv_lines([columns, *([row.get(column) for column in columns] for row in rows)])


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """A CSV file of rows, the headings first; None becomes an empty cell."""
    file = io.StringIO()
    escaped = ([escape.csv(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(file, lineterminator="\n").writerows(escaped)
    return file.getvalue()


def markdown_heading(level: int, title: str) -> list[str]:
    """The lines of a heading, including the empty line below it."""
    return [f"{'#' * level} {escape.markdown_block(title)}", ""]


def markdown_table(headings: Cells, rows: Iterable[Cells]) -> list[str]:
    """The lines of a table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(map(escape.markdown, cells)) + " |" for cells in lines]


def markdown_list(items: Iterable[str]) -> list[str]:
    """The lines of a bulleted list."""
    return [f"- {escape.markdown_block(item)}" for item in items]


def latex_table(title: str, headings: Cells, rows: Iterable[Cells], below: Iterable[str]) -> list[str]:
    """The lines of a floating table with a caption above and sentences below; it needs the package booktabs."""
    return [
        "\\begin{table}",
        f"\\caption{{{escape.latex(title)}}}",
        f"\\begin{{tabular}}{{{'l' * len(headings)}}}",
        "\\toprule",
        _latex_row(headings),
        "\\midrule",
        *map(_latex_row, rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\par\\footnotesize",
        *(f"{escape.latex(sentence)}. " for sentence in below),
        "\\end{table}",
    ]


def _latex_row(cells: Cells) -> str:
    return f"{' & '.join(map(escape.latex, cells))} \\\\"


def latex_comments(lines: Iterable[str]) -> list[str]:
    """Lines that LaTeX does not print."""
    return [f"% {escape.latex(line)}" for line in lines]


def html_table(headings: Cells, rows: Iterable[Cells]) -> list[str]:
    """The lines of a table."""
    body = [f"<tr>{_html_cells('td', cells)}</tr>" for cells in rows]
    return ["<table>", f"<thead><tr>{_html_cells('th', headings)}</tr></thead>", "<tbody>", *body, "</tbody></table>"]


def _html_cells(tag: str, cells: Cells) -> str:
    return "".join(f"<{tag}>{escape.html(cell)}</{tag}>" for cell in cells)


def html_list(items: Iterable[str]) -> list[str]:
    """The lines of a bulleted list."""
    return ["<ul>", *(f"<li>{escape.html(item)}</li>" for item in items), "</ul>"]
