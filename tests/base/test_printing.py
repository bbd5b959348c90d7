"""Printed tables show their cells completely, at any width."""

from __future__ import annotations

import re
import sys

import pytest
from rich.table import Table

from attnbench.base import console
from attnbench.cli import main

CELLS = ["placement.roles=[conv2]", "0.867 (0.787..0.946)", "outputs/runs/cifar10/mobilenetv2_cifar/" + "x" * 60]


def table() -> Table:
    made = Table("what", "x", "folder", title="a title of several words")
    made.add_row(*CELLS)
    return made


def test_in_a_file_a_row_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "a remark of " + "many " * 40 + "words"
    console.show(table(), long)
    lines = capsys.readouterr().out.splitlines()
    assert any(all(cell in line for cell in CELLS) for line in lines)
    assert lines[-1] == long


@pytest.mark.parametrize("columns", ["80", "50"])
def test_on_a_terminal_long_text_is_wrapped_inside_its_cell(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats any output as a terminal
    monkeypatch.setenv("COLUMNS", columns)
    console.show(table())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= int(columns) and "…" not in "".join(lines)
    columns_of = zip(*(line.split("│")[1:-1] for line in lines if line.startswith("│")), strict=True)
    assert ["".join(part.strip() for part in column).replace(" ", "") for column in columns_of] == [
        cell.replace(" ", "") for cell in CELLS
    ]


def test_paths_of_sites_are_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["attnbench count", "-v", "attention=sb", "backbone=mobilenetv2_cifar"])
    main.command("count")()
    out = capsys.readouterr().out
    assert "layers.0.conv2 " in out and "…" not in out
