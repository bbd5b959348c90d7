"""Foreign text is text in every format: every kind of hostile word, in every field that comes from outside."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from attnbench.base import escape
from attnbench.config import composition, hydra_state
from attnbench.config.configuration import Config
from attnbench.reports import formats
from attnbench.reports.paper_tables import load
from attnbench.reports.report import Cell, Line, Report, Trace
from attnbench.reports.rows import Chosen

Command = Callable[..., subprocess.CompletedProcess[str]]

WORDS = [
    "c0ffee\n\\input{/etc/passwd}", "two $x$ dollars $", "$\\frac{1$ odd", "<script>alert(1)</script>", "`code` ``x``",
    "[text](http://x.y) ![p](q)", "# heading", "- item", "a | b || c", "=1+1", "+SUM(A1)", "-cmd|' /C calc'!A0",
    "@SUM(1)", "\t=1+1", "\r=2", "[bold red]x[/] [/nope]", ":smile: &amp; &#65;", "\x1b[31mred\x1b]0;title\x07",
    "\x00\x7f\x9b31m", "\u202egnp.exe \u2028 x", "50 % & _a_ ^b ~c #1 {d}", "*a* **b** __c__ ~~d~~", "lone \udc80 half",
    '"a","b"; \'c\'', "* x", "[x]: http://y.z", "--weights x---y", "1. first", "naïve 中文 ∑",
]  # fmt: skip
hostile = pytest.mark.parametrize("word", WORDS, ids=[ascii(word) for word in WORDS])


class Page(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def report(word: str) -> Report:
    """A report with the word in every field."""
    table = load("sb/3")
    trace = Trace(word, 0, "failed", word, None, None, 1, word, word, "h", word, word, word)
    done = Trace(word, 1, "done", "", 50.0, 50.0, 1, word, word, "h", word, word, word)
    cell = Cell(
        "50.0", "0.1", word, 50.0, None, 1, state=f"1 of 2 seeds: 1; failed: {word}", note=word, runs=[trace, done]
    )
    line = Line(word, [word], {"top1": cell}, word, {}, word)
    return Report(Chosen(table, [], {}, [0, 1], True, word), [line, line], [word])


def unhidden(text: str) -> None:
    """No control characters but line breaks, and nothing that UTF-8 cannot hold."""
    text.encode()
    assert not [c for c in text if c != "\n" and escape.visible(c) != c]


@hostile
def test_reports_in_all_formats(word: str) -> None:
    made, plain = report(word), report("plain")
    for name, written in formats.FORMATS.items():
        text, expected = written([made]), written([plain])
        unhidden(text)
        if name != "text":  # which wraps
            assert text.count("\n") == expected.count("\n"), name
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated([made]))))
    assert {row["row"] for row in rows} == {escape.csv(word)}
    assert not re.match(r"\s*[=+@-]", rows[0]["row"])
    latex = formats.latex([made])
    assert "\\input" not in latex and "\\frac" not in latex
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[%#_]|\^\^", "\n".join(body))
    assert {line.count(" & ") for line in body if line.endswith(" \\\\")} == {len(formats.grid(made).headings) - 1}
    page = Page(formats.page([made]))
    assert page.tags == Page(formats.page([plain])).tags and escape.visible(word) in page.text
    assert json.loads(formats.as_json([made]))["rows"][0]["label"] == word


@hostile
def test_reports_in_markdown(word: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    ours, plain = (Page(parser.render(formats.markdown([report(of)]))) for of in (word, "plain"))
    assert ours.tags == plain.tags
    assert " ".join(ours.text.split()) == " ".join(plain.text.replace("plain", escape.visible(word)).split())


@pytest.fixture(scope="module")
def configs() -> list[Config]:
    with hydra_state.prepared():
        return [composition.compose(["attention=eca", f"attention.kernel_size={k}"]) for k in (3, 5, 7)]


@hostile
def test_comparisons_and_their_picture(command: Command, configs: list[Config], tmp_path: Path, word: str) -> None:
    value = word.replace("\udc80", "")  # which YAML cannot hold
    for number, config in enumerate(configs):
        folder = tmp_path / "runs" / str(number) / "seed0"
        folder.mkdir(parents=True)
        record = config.record()
        record["attention"]["kernel_size"] = f"{value}{number}"
        (folder / "config.yaml").write_text(yaml.safe_dump(record))
        (folder / "env.json").write_text(json.dumps({"commit": word, "device": word}))
        result = {"status": "done", "top1": 50.0 + number, "data": {"source": f"{word}{number}", "fingerprint": "0"}}
        status = {"status": "failed", "error": word}
        name, content = ("result.json", result) if number < 2 else ("status.json", status)
        (folder / name).write_text(json.dumps(content))
    done = command("compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    unhidden(done.stdout)
    for name in ("compare.csv", "compare.md"):
        unhidden((tmp_path / "out" / name).read_text(encoding="utf-8"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "compare.csv").read_text())))
    assert [row["attention.kernel_size"] for row in rows] == [escape.csv(f"{value}{number}") for number in range(2)]
    parsed = Page(MarkdownIt("commonmark").enable("table").render((tmp_path / "out" / "compare.md").read_text()))
    assert parsed.tags == {"h1", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        unhidden(picture.info["Description"])


def test_a_picture_shows_dollars_and_escapes_as_they_are() -> None:
    from matplotlib.text import Text

    from attnbench.reports.figures import canvas, saving, value_axis

    picture, [[axes]] = canvas.canvas(1, 1, (4, 3), "a $x$ and $\\frac$", ["note $\\foo$ \x1b"])
    value_axis.value_axis(["$1$", "\x07$\\bad$"]).set_on(axes)
    canvas.legend(picture, [canvas.key("$\\worse$\udc80", color="red")])
    assert saving.png(picture, "$a$ \udc80") and saving.pdf(picture, "$a$ \udc80")
    texts = [text for text in picture.findobj(Text) if text.get_text()]
    assert not [text for text in texts if text.get_parse_math() and "$" in text.get_text()]
    assert "\\x07$\\bad$" in [text.get_text() for text in texts]
