r"""Escapes text for each output format, so that it is shown and never interpreted as markup.

There is one function for each format that attnbench writes. Code that writes a format must escape all text that may
come from outside: from an option, a file name, a run's folder or an exception. In every format, control characters are
shown as Python writes them: a line break as ``\n``, the start of a terminal's commands as ``\x1b``.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape as _html

LATEX = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
LATEX |= {"±": "$\\pm$", "<": "$<$", ">": "$>$", "|": "$|$", "[": "{[}", "*": "{*}"}  # \\ takes [ and * as its own
LATEX |= {'"': "\\char34{}"}  # some languages make it a command
LIGATURE = re.compile(r"([-'`,])(?=\1)|[?!](?=`)")

CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: control characters, halves of pairs, line separators
DIRECTIONS = (
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder what stands beside them
)

# What Markdown interprets inside a line, and at its start. An underscore between letters is text.
MARKDOWN = re.compile(r"[\\`*\[|~$<]|(?<![^\W_])_|_(?![^\W_])|&(?=#|\w+;)|:(?=[a-z+-][\w+-]*:|//)|(?<=www)\.")
MARKDOWN_START = re.compile(r"^\s*(?:([#>=]|[+-](?=[\s-]|$))|(\d+)([.)](?=\s|$)))")
ENTITIES = {"<": "&lt;", "&": "&amp;"}

FORMULA = re.compile(r"^\s*[=+\-@]|^[\t\r\n]")  # spreadsheets calculate such a cell
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?$|^-?$", re.I)


def line(text: str) -> str:
    """Text as a part of one line: control characters, and those that change its direction, are shown as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _hidden(c) else c for c in text)


def _hidden(character: str) -> bool:
    return character in DIRECTIONS or unicodedata.category(character) in CONTROL


def html(text: str) -> str:
    """Escape text for an HTML element or attribute."""
    return _html(line(text))


def latex(text: str) -> str:
    """Escape text for a LaTeX paragraph, table cell or comment, which a line break would end."""
    return "".join(LATEX.get(c, c) for c in LIGATURE.sub("\\g<0>\0", line(text))).replace("\0", "{}")


def markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table or the inside of a line."""
    return MARKDOWN.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), line(text))


def markdown_block(text: str) -> str:
    """Escape text for a whole heading or item of a list in Markdown, where its start could begin a block."""
    whole = markdown(text).strip()
    return MARKDOWN_START.sub(lambda found: f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}", whole)


def csv(text: str) -> str:
    """Escape text for a cell of a CSV file: what a spreadsheet would calculate begins with an apostrophe."""
    return f"'{line(text)}" if FORMULA.match(text) and not NUMBER.match(text) else line(text)


def terminal(text: str) -> str:
    """Escape text for a line on a terminal."""
    return line(text)
