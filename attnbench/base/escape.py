r"""Escapes text for each output format, so that it is shown and never interpreted as markup.

There is one function for each format that attnbench writes. Code that writes a format must escape all text that may
come from outside: from an option, a file name, a run's folder or an exception. In every format, control characters are
shown as Python writes them: a line break as ``\n``, the start of a terminal's commands as ``\x1b``.
"""

from __future__ import annotations

import re
from html import escape as _html

# Characters that a terminal or an editor acts on: control characters, directions of writing, ends of lines, surrogates.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
LATEX |= {"±": "$\\pm$", "<": "$<$", ">": "$>$", "|": "$|$", "[": "{[}", "*": "{*}"}  # \\ takes [ and * as its own
LATEX |= {'"': "\\char34{}"}  # some languages make it a command
LIGATURE = re.compile(r"([-'`,])(?=\1)|[?!](?=`)")

# What Markdown interprets inside a line, and at its start. An underscore between letters is text.
MARKDOWN = re.compile(r"[\\`*\[|~$<]|(?<![^\W_])_|_(?![^\W_])|&(?=#|\w+;)|:(?=[a-z+-][\w+-]*:|//)|(?<=www)\.")
MARKDOWN_START = re.compile(r"^\s*(?:([#>=]|[+-](?=[\s-]|$))|(\d+)([.)](?=\s|$)))")
ENTITIES = {"<": "&lt;", "&": "&amp;"}

FORMULA = re.compile(r"^\s*[=+\-@]|^[\t\r\n]")  # spreadsheets calculate such a cell
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?$|^-?$", re.I)


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
    """Escape text for a LaTeX paragraph, table cell or comment, which a line break would end."""
    return "".join(LATEX.get(c, c) for c in LIGATURE.sub("\\g<0>\0", visible(text))).replace("\0", "{}")


def markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table or the inside of a line."""
    return MARKDOWN.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), visible(text))


def markdown_block(text: str) -> str:
    """Escape text for a whole heading or item of a list in Markdown, where its start could begin a block."""
    whole = markdown(text).strip()
    return MARKDOWN_START.sub(lambda found: f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}", whole)


def csv(text: str) -> str:
    """Escape text for a cell of a CSV file: what a spreadsheet would calculate begins with an apostrophe."""
    return f"'{visible(text)}" if FORMULA.match(text) and not NUMBER.match(text) else visible(text)
