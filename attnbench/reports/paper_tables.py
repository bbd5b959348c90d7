"""The papers' tables as they lie in configs/table: rows of label, overrides and printed cells."""

from __future__ import annotations

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
        unit: as printed, such as ``M`` or ``%``.
        per: how many of the plain unit one of that is: 10^6 or 2^20 parameters.
        counter: how our number is counted, None where it is measured by a run.
    """

    unit: str
    per: float = 1.0
    counter: str | None = None
    derived: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: its name in reports.
        overrides: the command line of its run; None if it is only quoted.
        printed: the printed cells by column, as strings that keep their digits; ``<column>_std`` beside a mean.
        counts: the exact numbers behind printed counts, where they are known.
        note: remarks by column, ``*`` for the row.
        unit, per, counter: this row's own units and ways of counting, where they differ from the column's.
        quoted: copied by the paper's authors from another publication.
        baseline: the label of the row that this one is compared with, where it is not the table's.
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


@dataclass(frozen=True)
class Table:
    """A table of a paper; ``id`` is ``<paper>/<number>``."""

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
    """The tables there are, ``eca/1`` first."""
    found = (folder() / paper for paper in ("eca", "sb"))
    return [f"{p.parent.name}/{p.stem}" for d in found for p in sorted(d.glob("*.yaml"), key=lambda p: int(p.stem))]


def load(table: str) -> Table:
    """Read a table.

    Raises:
        ConfigError: there is none of that name.
    """
    return parsed(table, contents("table", table, ids()))


def contents(kind: str, name: str, known: Sequence[str]) -> dict[str, Any]:
    """What the file of a table or a figure holds, as YAML has it.

    Args:
        kind: ``table`` or ``figure``.
        known: the names that there are.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in known:
        raise ConfigError(f"there is no {kind} {name}", "command line", nearest(name, known))
    path = option_files.folder() / kind / f"{name}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def parsed(table: str, content: Mapping[str, Any]) -> Table:
    """A table from the contents of its file."""
    columns = {name: Column(**about) for name, about in content["columns"].items()}
    rows = [Row(**row) for row in content["rows"]]
    rest = {key: value for key, value in content.items() if key not in ("columns", "rows")}
    return Table(id=table, columns=columns, rows=rows, **rest)


def folder() -> Path:
    """Where the tables' files are: ``configs/table``."""
    return option_files.folder() / "table"
