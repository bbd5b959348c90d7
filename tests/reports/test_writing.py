"""Text from outside is escaped in every format."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from rich.table import Table

from attnbench.base import console
from attnbench.reports import writing

HOSTILE = [
    "a | b", "|", "50 % & more_x", "$x^2$ #1 {y} ~z", "\\input{secrets}", "<script>alert(1)</script>", "&amp;",
    'say "no", or', "[bold red]error[/]", ":smile:", "plain",
]  # fmt: skip
every_hostile_text = pytest.mark.parametrize("text", HOSTILE)


class Cells(HTMLParser):
    """The text of each element of a page, with its tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts += [data] if data.strip() else []


@every_hostile_text
def test_a_csv_cell_is_read_back(text: str) -> None:
    written = writing.csv_table([text, "n"], [{text: text, "n": None}])
    assert list(csv.DictReader(io.StringIO(written))) == [{text: text, "n": ""}]


@every_hostile_text
def test_a_markdown_row_has_as_many_cells_as_it_was_given(text: str) -> None:
    rows = writing.markdown_table([text, "n"], [[text, "1"]])
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3]


@every_hostile_text
def test_a_latex_row_contains_no_command_of_the_text(text: str) -> None:
    table = "\n".join(writing.latex_table(text, [text], [[text]], [text]))
    assert "\\input" not in table
    assert not re.search(r"(?<!\\)[%#_]", table)
    assert table.count(" & ") == 0


@every_hostile_text
def test_html_has_no_element_that_is_not_ours(text: str) -> None:
    page = Cells("".join([*writing.html_table([text], [[text]]), *writing.html_list([text])]))
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert page.texts == [text] * 3


@every_hostile_text
def test_a_terminal_shows_what_it_is_given(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(text)
    table.add_row(text)
    console.show(table, text)
    assert capsys.readouterr().out.count(text) == 3
