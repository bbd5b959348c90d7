"""The papers' tables, read from configs/table: each row has a label, overrides and printed cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from attnbench.base.errors import ConfigError, nearest
from attnbench.config import option_files


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        unit: the printed unit, such as ``M`` or ``%``.
        per: the size of that unit in plain units: 10^6 or 2^20 for M parameters.
        counter: how our number is counted; None if a run measures it.
        derived: how we derive the cells from printed ones; empty if the paper prints the column itself.
    """

    unit: str
    per: float = 1.0
    counter: str | None = None
    derived: str = ""


@dataclass(frozen=True)
class Start:
    """The network whose trained weights a row's runs start from.

    Attributes:
        table, row: the id of a table and the label of its row.
        overrides: in what the network, or its training, differs from that row's.
    """

    table: str
    row: str
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: the row's name in reports.
        overrides: the Hydra overrides of its runs; None for a row that we only quote.
        printed: the printed cells by column, as strings, which keep all digits; ``<column>_std`` holds the deviation.
        counts: the exact integers behind printed counts, where known.
        note: remarks by column; ``*`` is a remark on the whole row.
        unit, per, counter: by column, where this row differs from the column.
        quoted: whether the paper's authors copied the row from another publication.
        baseline: the label of the row to compare with, if it differs from the table's baseline.
        weights: the network whose trained weights its runs start from, if any.
    """

    label: str
    overrides: list[str] | None
    printed: dict[str, str]
    counts: dict[str, int] = field(default_factory=dict)
    note: dict[str, str] = field(default_factory=dict)
    unit: dict[str, str] = field(default_factory=dict)
    per: dict[str, float] = field(default_factory=dict)
    counter: dict[str, str] = field(default_factory=dict)
    quoted: bool = False
    baseline: str | None = None
    weights: Start | None = None


@dataclass(frozen=True)
class Table:
    """A table of a paper; ``id`` is ``<paper>/<number>``, or ``<paper>/<name>`` if the paper does not print it."""

    id: str
    title: str
    source: str
    columns: dict[str, Column]
    rows: list[Row]
    seeds: int = 1
    baseline: str | None = None
    requires: str | None = None
    notes: list[str] = field(default_factory=list)


def ids() -> list[str]:
    """The ids of all tables, ``eca/1`` first; each paper's printed tables come before the others."""
    names = {paper: [path.stem for path in (folder() / paper).glob("*.yaml")] for paper in ("eca", "sb")}
    return [f"{paper}/{name}" for paper, all_names in names.items() for name in sorted(all_names, key=_order)]


def _order(name: str) -> tuple[float, str]:
    """The printed tables by number, then the others by name."""
    return (int(name) if name.isdigit() else math.inf), name


def printed() -> list[str]:
    """The ids of the tables that stand in a paper: those with a number."""
    return [table for table in ids() if table.rpartition("/")[2].isdecimal()]


def load(table: str) -> Table:
    """Read a table.

    Raises:
        ConfigError: no table has this id.
    """
    return parsed(table, contents("table", table, ids()))


def contents(kind: str, name: str, known: Sequence[str]) -> dict[str, Any]:
    """Read the YAML file of a table or a figure.

    Args:
        kind: ``table`` or ``figure``.
        known: all valid names.

    Raises:
        ConfigError: the name is not valid.
    """
    if name not in known:
        raise ConfigError(f"there is no {kind} {name}", "command line", nearest(name, known))
    path = option_files.folder() / kind / f"{name}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def parsed(table: str, content: Mapping[str, Any]) -> Table:
    """Build a table from the contents of its file."""
    columns = {name: Column(**about) for name, about in content["columns"].items()}
    rows = [Row(**row | ({"weights": Start(**row["weights"])} if "weights" in row else {})) for row in content["rows"]]
    rest = {key: value for key, value in content.items() if key not in ("columns", "rows")}
    return Table(id=table, columns=columns, rows=rows, **rest)


def folder() -> Path:
    """The folder of the tables' files, ``configs/table``."""
    return option_files.folder() / "table"
