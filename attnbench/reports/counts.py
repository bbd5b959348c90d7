"""Printed parameters and operations against ours, and why some cannot match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from torch import nn

from attnbench.config.composition import compose
from attnbench.config.configuration import Config
from attnbench.config.hydra_state import prepared
from attnbench.models import complexity
from attnbench.reports.paper_tables import Column, Row, Table

Sketch = Callable[[Config], tuple[nn.Module, complexity.Size]]  # builds a network on the meta device, with image size
Composed = Callable[[Sequence[str]], Config]  # composes a row's overrides


@dataclass(frozen=True)
class CountedCell:
    """A printed count and ours.

    Attributes:
        printed: the paper's text.
        ours: the exact count in plain units; None for a row that has no network.
        unit: the unit of ``printed``.
        matched: whether ours rounds to the printed count.
        note: why it does not match, or how it is counted.
    """

    printed: str
    ours: int | None
    unit: str
    matched: bool
    note: str = ""


def count(table: Table, sketch: Sketch, composed: Composed = compose) -> list[tuple[Row, dict[str, CountedCell]]]:
    """The counted cells of each row of a table."""
    networks = _Networks(sketch)
    with prepared():
        return [(row, _cells(table, row, networks, composed)) for row in table.rows]


def as_dict(table: Table, counted: Sequence[tuple[Row, dict[str, CountedCell]]]) -> dict[str, Any]:
    """The JSON object of ``attnbench table ID --count --json``."""
    rows = [
        {
            "label": row.label,
            "overrides": row.overrides,
            "cells": {name: vars(cell) for name, cell in cells.items()},
            "note": row.note.get("*", ""),
        }
        for row, cells in counted
    ]
    return {"id": table.id, "title": table.title, "source": table.source, "notes": table.notes, "rows": rows}


# What the counter of a column counts.
KINDS = {
    "params": "parameters",
    "trainable": "parameters",
    "thop2019": "operations",
    "thop2019_late": "operations",
    "detection": "operations",
    "sb": "multiply-adds",
    "sb_added": "multiply-adds",
    "module_params": "module formulas",
}


@dataclass(frozen=True)
class TalliedCell:
    """A printed count in the tally: its kind, the id of its table, its row and column, and the cell."""

    kind: str
    table: str
    row: str
    column: str
    cell: CountedCell


def tally(tables: Iterable[Table], sketch: Sketch) -> list[TalliedCell]:
    """Every printed count of some tables; cells that we derive from printed ones are left out."""
    return [
        TalliedCell(KINDS[table.columns[name].counter or ""], table.id, row.label, name, cell)
        for table in tables
        for row, counted in count(table, sketch)
        for name, cell in counted.items()
        if not table.columns[name].derived
    ]


def totals(cells: Sequence[TalliedCell]) -> dict[str, tuple[int, int]]:
    """For each kind of count, and for ``all``, how many cells are matched, and how many there are."""
    kinds = dict.fromkeys(KINDS.values())
    groups = {kind: [one for one in cells if one.kind == kind] for kind in kinds} | {"all": list(cells)}
    return {kind: (sum(one.cell.matched for one in some), len(some)) for kind, some in groups.items()}


def rounds_to(ours: int, printed: str, per: float) -> bool:
    """Whether a count in plain units, divided by ``per``, rounds to the printed digits."""
    digits = Decimal(printed)
    return (Decimal(ours) / Decimal(per)).quantize(digits, ROUND_HALF_UP) == digits


def cells(table: Table, row: Row, sketch: Sketch, composed: Composed = compose) -> dict[str, CountedCell]:
    """The counted cells of a row, by column; each of its networks is built once for all of them."""
    return _cells(table, row, _Networks(sketch), composed)


def _cells(table: Table, row: Row, networks: _Networks, composed: Composed) -> dict[str, CountedCell]:
    counters = {
        name: row.counter.get(name, column.counter)
        for name, column in table.columns.items()
        if column.counter and name in row.printed
    }
    ours: dict[str, int | None] = dict.fromkeys(counters)
    if counters and row.overrides is not None:
        config = composed(row.overrides)
        ours = {name: _ours(config, counter, networks) for name, counter in counters.items()}
    return {name: _cell(row, name, table.columns[name], ours[name]) for name in counters}


class _Networks:
    """Networks, each of which is built and counted once, although rows share networks without attention."""

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch
        self.built: dict[str, tuple[nn.Module, complexity.Size]] = {}
        self.counted: dict[tuple[str, str], int] = {}

    def model(self, config: Config) -> nn.Module:
        """The network of a configuration."""
        return self._of(config)[0]

    def count(self, config: Config, counter: str) -> int:
        """What one of ``complexity.COUNTERS`` counts in it."""
        key = config.hash, counter
        if key not in self.counted:
            self.counted[key] = complexity.COUNTERS[counter](*self._of(config))
        return self.counted[key]

    def _of(self, config: Config) -> tuple[nn.Module, complexity.Size]:
        if config.hash not in self.built:
            self.built[config.hash] = self.sketch(config)
        return self.built[config.hash]


def _cell(row: Row, name: str, column: Column, ours: int | None) -> CountedCell:
    printed, note, unit = row.printed[name], row.note.get(name, ""), row.unit.get(name, column.unit)
    if name in row.counts and not is_numeral(printed):  # a printed formula: the row holds its network's value
        return CountedCell(printed, ours, unit, ours == row.counts[name], note)
    matched = ours is not None and rounds_to(ours, printed, row.per.get(name, column.per))
    return CountedCell(printed, ours, unit, matched, note)


def is_numeral(text: str) -> bool:
    """Whether a printed cell is a number, and neither empty nor a formula."""
    return text.replace(".", "", 1).isdigit()


def _ours(config: Config, counter: str, networks: _Networks) -> int:
    """What a counter counts in a configuration's network."""
    if counter == "params":
        return complexity.params(networks.model(config))
    if counter == "trainable":
        return complexity.trainable(networks.model(config))
    plain = config.without_attention()
    if counter == "module_params":
        return complexity.params(networks.model(config)) - complexity.params(networks.model(plain))
    if counter == "sb_added":
        return networks.count(config, "sb") - networks.count(plain, "sb")
    return networks.count(config, counter)
