"""Foreign text as text of a format: what a label, a path or an error message holds is shown and never obeyed.

There is one function for each format that attnbench writes. Whoever writes a format passes every word through its
function that may come from outside: from an option, a file's name, a run's folder or an exception.
"""

from __future__ import annotations

from html import escape as _html

LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
LATEX |= {"±": "$\\pm$", "<": "$<$", ">": "$>$", "[": "{[}"}


def html(text: str) -> str:
    """Text of an HTML element or attribute."""
    return _html(text)


def latex(text: str) -> str:
    """Text of a LaTeX paragraph or of a table's cell."""
    return "".join(LATEX.get(c, c) for c in text)


def markdown(text: str) -> str:
    """Text of a cell in a Markdown table."""
    return text.replace("|", "\\|")
