"""Escapes text for each output format, so that it is shown and never interpreted as markup.

There is one function for each format that attnbench writes. Code that writes a format must escape all text that may
come from outside: from an option, a file name, a run's folder or an exception.
"""

from __future__ import annotations

from html import escape as _html

LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
LATEX |= {"±": "$\\pm$", "<": "$<$", ">": "$>$", "[": "{[}"}


def html(text: str) -> str:
    """Escape text for an HTML element or attribute."""
    return _html(text)


def latex(text: str) -> str:
    """Escape text for a LaTeX paragraph or table cell."""
    return "".join(LATEX.get(c, c) for c in text)


def markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("|", "\\|")
