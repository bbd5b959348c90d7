"""Matches the classes of a data set with those of a network by their names, never by their position."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.base.errors import ConfigError, DataError, listed
from attnbench.data.dataset import Dataset

NUMBERS = "numbers"  # a class map without a file: folder 0 is the network's first class


@dataclass(frozen=True)
class Matching:
    """How classes are matched.

    Attributes:
        names: the network's name for a class of the data, by the data's name; others keep their name.
        common: whether to evaluate on the common classes if the data lack some or have others.
        answers: among which classes the network chooses: the common ones, or all of its own.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    common: bool = False
    answers: str = "common"


STRICT = Matching()


@dataclass(frozen=True)
class Matched:
    """Data with the labels of a network.

    Attributes:
        data: the data; ``classes`` are the possible answers, in the network's order.
        answers: the position of each of them among the network's classes; None for all in their order.
        lacking: classes of the network that the data lack.
        others: classes of the data that the network lacks; they are left out.
    """

    data: Dataset
    answers: list[int] | None = None
    lacking: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def matched(data: Dataset, classes: Sequence[str], matching: Matching, where: object, *, boxes: bool) -> Matched:
    """The data with the labels of a network's classes.

    Args:
        classes: the names of the network's classes.
        where: the place of the data, for error messages.
        boxes: whether these are data for a detector; its answers are never restricted.

    Raises:
        DataError: the data lack classes or have others and ``common`` is not set, or there is no common class.
    """
    names = [matching.names.get(name, name) for name in data.classes]
    if names == list(classes):
        return Matched(data)
    _refuse_repeated(classes, where)
    lacking = tuple(name for name in classes if name not in set(names))
    others = tuple(dict.fromkeys(name for name in names if name not in set(classes)))
    if (lacking or others) and not matching.common:
        raise _mismatch(lacking, others, names, where)
    if len(lacking) == len(classes):
        raise DataError(f"no class of these data is one of the run's: {listed(names)}", where, _by_map(names))
    restricted = bool(lacking) and matching.answers == "common" and not boxes
    kept = [number for number, name in enumerate(classes) if not restricted or name not in lacking]
    position = {classes[number]: new for new, number in enumerate(kept)}
    table = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    relabel: Any = getattr(data.val, "relabelled", None)
    if relabel is None:
        raise DataError("these data have other class names or another order", where, "give the data set of the run")
    changed = replace(data, classes=tuple(classes[number] for number in kept), val=relabel(table))
    return Matched(changed, kept if restricted else None, lacking, others)


def _refuse_repeated(classes: Sequence[str], where: object) -> None:
    repeated = [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]
    if repeated:
        raise DataError(f"the run has two classes of the name {listed(repeated)}", where, "give the run's own data")


def _mismatch(lacking: Sequence[str], others: Sequence[str], names: Sequence[str], where: object) -> DataError:
    parts = [f"have {len(others)} that the run lacks: {listed(others)}"] if others else []
    parts += [f"lack {len(lacking)} of the run's: {listed(lacking)}"] if lacking else []
    both = len(set(names)) > len(others)
    todo = "--common-classes evaluates on the common ones" if both else _by_map(names)
    return DataError(f"other classes than the run's: these data {' and '.join(parts)}", where, todo)


def _by_map(names: Sequence[str]) -> str:
    todo = "--class-map FILE says which class is which"
    if all(map(str.isdecimal, names)):
        todo += " (or --class-map numbers, if folder 0 is the run's first class)"
    return todo


def class_map(given: str, classes: Sequence[str]) -> dict[str, str]:
    """The network's name for each class of some data.

    Args:
        given: ``numbers``, for folders named by the position of their class in the run's classes.json; or a file. A
            JSON file is an object of names; a text file has a line ``name of the data, name of the run`` for each
            class, with a comma or a tab between them, or only the run's names: line n is then the class ``n - 1``.

    Raises:
        ConfigError: the file cannot be read, or names a class that the run does not have.
    """
    if given == NUMBERS:
        return {str(number): name for number, name in enumerate(classes)}
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(text) if text.lstrip().startswith(("{", "[")) else _from_lines(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        todo = "give a JSON object of names, lines of two names, or a list of the run's names"
        raise ConfigError(f"the class map cannot be read: {reason}", path, todo) from error
    known = set(classes)
    if strange := [name for name in names.values() if name not in known]:
        raise ConfigError(f"the class map names classes that the run does not have: {listed(strange)}", path)
    return names


def _from_json(text: str) -> dict[str, str]:
    found = json.loads(text)
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError("it is not an object of names")
    return {str(key): name for key, name in found.items()}


def _from_lines(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = "\t" if any("\t" in line for line in lines) else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    if rows and all(len(row) == 1 for row in rows):
        return {str(number): row[0] for number, row in enumerate(rows)}
    if not rows or any(len(row) != 2 for row in rows):
        wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), 1)
        raise ValueError(f"line {wrong} does not have two names")
    return {row[0]: row[1] for row in rows}
