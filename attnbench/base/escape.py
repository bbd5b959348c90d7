"""Escapes text for each output format, so that it is shown and never interpreted as markup.

There is one function for each format that attnbench writes. Code that writes a format must escape all text that may
come from outside: from an option, a file name, a run's folder or an exception.
"""

from __future__ import annotations

import re
from html import escape as _html

# Characters that a terminal or an editor acts on: control characters, directions of writing, ends of lines, surrogates.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
LATEX |= {"±": "$\\pm$", "<": "$<$", ">": "$>$", "[": "{[}"}


def visible(text: str, keep: str = "") -> str:
    """Show control characters by their codes in Python; for terminals, logs and all other formats.

    Args:
        keep: characters that stay as they are, such as the end of a line.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else _shown(found[0]), text)


def _shown(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def html(text: str) -> str:
    """Escape text for an HTML element or attribute."""
    return _html(visible(text))


def latex(text: str) -> str:
    """Escape text for a LaTeX paragraph or table cell."""
    return "".join(LATEX.get(c, c) for c in visible(text))


def markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table, a heading or a list."""
    return re.sub(r"([`|<]|(?<=\])\()", r"\\\1", visible(text).replace("\\", "\\\\"))


def csv(text: str) -> str:
    """Escape text for a cell of a CSV file: a spreadsheet must not take it for a formula."""
    shown = visible(text)
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") and not _is_number(shown) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
