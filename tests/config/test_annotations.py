"""Types of options in a user's own package are read from its source, without running it."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt

from attnbench.base.errors import ConfigError
from attnbench.config import builders
from tests.conftest import ROOT

KINDS = """
from typing import *
from annotated_types import Gt
Width = Annotated[int, Gt(0)]
Mode = Literal["mean", "max"]
"""

NUMBERS = itertools.count()  # numbers for package names: a process imports each name only once

HEAD = """
from __future__ import annotations
import math
import typing
import typing as t
import annotated_types
import collections.abc
from collections import abc
from enum import Enum
from typing import Annotated, Literal, Literal as L, NewType, Optional, TypeAlias, Union, TYPE_CHECKING
from annotated_types import Ge, Gt, Interval, Le, MultipleOf
from pydantic import AfterValidator, Field, PositiveInt, conint
import attnbench.options as former
from attnbench import options
from attnbench.config.options import *
from attnbench.config.options import NonNegative as Nn
from attnbench.config.options import checked
from . import kinds
from .kinds import Mode as Chosen, Width
from .deep import Passed
import PACKAGE.kinds
import PACKAGE.kinds as k
try:
    from typing import Literal as Lit
except ImportError:
    from typing_extensions import Literal as Lit
if TYPE_CHECKING:
    from torch import Tensor
LOW = -1.5
LIMIT = Gt(LOW)
Rate = Annotated[float, Gt(0), Le(1)]
Rates = list[Rate]
Mode: TypeAlias = Literal["a", "b"]
Name = NewType("Name", str)
Tree = list["Tree"]
here, there = int, str
class Colour(Enum):
    RED = "red"
def even(k: int) -> int:
    return k
"""


class Lab:
    """A user's own, trusted package; its modules create the file ``mark`` if they are run."""

    def __init__(self, folder: Path) -> None:
        self.name, self.mark = f"lab{next(NUMBERS)}", folder / "ran"
        self.folder = folder / self.name
        self.folder.mkdir()
        (self.folder / "deep").mkdir()
        self.write("__init__", "")
        self.write("deep/__init__", "from ..kinds import Width as Passed")
        self.write("kinds", KINDS)

    def write(self, module: str, text: str) -> str:
        """Write a module; returns its full name."""
        mark = f"open({str(self.mark)!r}, 'w').close()"
        (self.folder / f"{module}.py").write_text(f"{text}\n{mark}\n".replace("PACKAGE", self.name))
        return f"{self.name}.{module}"

    def builder(self, annotation: str, more: str = "", module: str = "own") -> str:
        """Write a builder with one option; returns its target."""
        made = f"@checked\ndef made(site, *, k: {annotation} = None) -> object:\n    return k"
        return self.write(module, f"{HEAD}{more}\n{made}") + ".made"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ATTNBENCH_TRUST", made.name)
    return made


READABLE = [
    "int | None",
    "str | int | None",
    "Rate",
    "Rate | None",
    "'Rate'",
    "'Rate | None'",
    "list['Rate']",
    "Rates",
    "Optional[Rate]",
    "Union[Rate, Mode]",
    "Mode",
    "L['x', 1, -2, True, None]",
    "Lit['x']",
    "t.Literal['x']",
    "typing.Optional[t.List[int]]",
    "Literal[Mode, 'c']",
    "dict[str, Rate]",
    "tuple[int, ...]",
    "abc.Sequence[int]",
    "collections.abc.Sequence[int]",
    "Annotated[float, Interval(gt=LOW, lt=float('inf'))]",
    "Annotated[float, LIMIT, Le(math.inf)]",
    "Annotated[int, annotated_types.Ge(2), MultipleOf(2)]",
    "PositiveInt",
    "conint(gt=0, le=9)",
    "Nn",
    "Count",
    "options.Fraction",
    "former.OddInt",
    "Chosen",
    "Width",
    "kinds.Width",
    "k.Mode",
    "PACKAGE.kinds.Mode",
    "Passed",
]


@pytest.mark.parametrize("annotation", READABLE)
def test_an_annotation_is_read_as_python_evaluates_it(annotation: str, lab: Lab) -> None:
    target = lab.builder(annotation.replace("PACKAGE", lab.name))
    read = builders.declaration(target, "attention")["k"]
    assert not lab.mark.exists()
    module = importlib.import_module(f"{lab.name}.own")
    assert lab.mark.exists()
    assert read == typing.get_type_hints(module.made, include_extras=True)["k"]


def test_a_new_type_is_read_as_its_base_type(lab: Lab) -> None:
    assert builders.declaration(lab.builder("Name"), "attention")["k"] is str


def test_a_users_own_validator_is_left_to_the_builder(lab: Lab) -> None:
    even = "def even(k: int) -> int:\n    if k % 2:\n        raise ValueError('must be even')\n    return k"
    target = lab.builder("Annotated[int, Gt(0), AfterValidator(even)]", even)
    assert builders.declaration(target, "attention")["k"] == Annotated[int, Gt(0)]
    assert not lab.mark.exists()
    assert builders.checked_node({"_target_": target, "k": 3}, "attention")["k"] == 3
    with pytest.raises(ConfigError, match="k=3: must be even"):
        builders.build({"_target_": target, "k": 3}, "attention", None)
    with pytest.raises(ConfigError, match=r"k=0: must be greater than 0 \(attention.k\)"):
        builders.checked_node({"_target_": target, "k": 0}, "attention")


NOT_TYPES = [
    ("Missing", "Missing is neither assigned nor imported in .*own.py"),
    ("here", "here is neither assigned nor imported"),
    ("Colour", "Colour is a class or a function in .*own.py"),
    ("Literal[Colour.RED]", "Colour is not an imported module"),
    ("'Tensor'", "Tensor comes from torch, which ATTNBENCH_TRUST does not name"),
    ("t.Nothing", "typing has no type Nothing"),
    ("typing.cast", "typing.cast is not a type"),
    ("options.explain", "options.explain is not a type"),
    ("even(2)", "even is a class or a function"),
    ("Tree", "it refers to itself"),
    ("'Rate |'", "'Rate |' is not a type"),
    ("LOW", "-1.5 is not a type"),
    ("Optional[int, str]", "TypeError"),
    ("__import__('pathlib').Path('ran').touch() or int", "is not a type"),
]


@pytest.mark.parametrize(("annotation", "reason"), NOT_TYPES)
def test_an_annotation_that_cannot_be_read_gives_one_line_if_the_option_is_set(
    annotation: str, reason: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.mark.parent)
    target = lab.builder(annotation)
    assert builders.checked_node({"_target_": target}, "attention") == {"_target_": target}
    with pytest.raises(ConfigError, match=rf"the type of k cannot be read .*, as .*{reason}") as refused:
        builders.checked_node({"_target_": target, "k": 1}, "attention")
    line = (lab.folder / "own.py").read_text().partition("def made")[0].count("\n") + 1
    assert refused.value.where == f"{lab.folder}/own.py:{line}"
    assert "\n" not in str(refused.value) and "attnbench.config.options" in refused.value.todo
    assert not lab.mark.exists()


BASE = """
from typing import ClassVar, Literal
from pydantic.dataclasses import dataclass as fields
from pydantic import Field
Kind = Literal["base"]
@fields
class Base:
    common: ClassVar[int] = 3
    kind: Kind = "base"
    deep: int = Field(1, gt=0)
"""
NET = """
from typing import Literal
from pydantic.dataclasses import dataclass
from . import base as b
Kind = Literal["net"]
@dataclass
class Net(b.Base):
    own: Kind = "net"
"""


def test_fields_are_read_in_the_module_that_defines_them(lab: Lab) -> None:
    """Fields of a base are read in the base's module, also if the base and the decorator have other names here."""
    lab.write("base", BASE)
    target = lab.write("net", NET) + ".Net"
    kinds = {"kind": Literal["base"], "deep": int, "own": Literal["net"]}
    assert builders.declaration(target, "detector") == kinds
    with pytest.raises(ConfigError, match=r"deep=0: must be greater than 0 \(detector\)"):
        builders.build({"_target_": target, "deep": 0}, "detector")


def test_a_module_that_is_not_python_or_cannot_be_imported_is_one_line(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"the source is not Python 3.*own\.py:\d+\)"):
        builders.declaration(lab.builder("int", "x = ="), "attention")
    target = lab.builder("int", "import nothing_of_that_name", "late")
    with pytest.raises(ConfigError, match=r"late cannot be imported: ModuleNotFoundError: .*nothing_of_that_name"):
        builders.build({"_target_": target, "k": 1}, "attention")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a statement of Python 3.12")
def test_the_type_statement(lab: Lab) -> None:
    aliases = "type Factor = Annotated[float, Gt(0)]\ntype Pair[T] = tuple[T, T]"
    assert builders.declaration(lab.builder("Factor", aliases), "attention")["k"] == Annotated[float, Gt(0)]
    pair = builders.declaration(lab.builder("Pair[int]", aliases, "pairs"), "attention")["k"]
    assert isinstance(pair, ConfigError)


OPTION = """
defaults:
  - /placement@_global_.placement: block
_target_: PACKAGE.own.made
k: 0.5
"""


def test_an_alias_is_checked_on_the_command_line_and_the_attention_trains(
    lab: Lab,
    tmp_path: Path,
    attnbench: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    option = tmp_path / "conf/attention/own.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(OPTION.replace("PACKAGE", lab.name))
    lab.builder("Rate")
    written = lab.folder / "own.py"
    written.write_text(written.read_text().replace("return k", "return site.trunk"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")

    def train(*overrides: str) -> tuple[int, str]:
        small = ["backbone=resnet20", "backbone.depth=8", "dataset.size=4", "batch_size=512", "schedule.epochs=1"]
        done = attnbench("--config-dir", f"{tmp_path}/conf", "attention=own", "runtime.device=cpu", *small, *overrides)
        return done.returncode, done.stderr

    error = "error: k=1.5: must be less than or equal to 1 (attention.k); it is a number > 0 and <= 1\n"
    assert train("attention.k=1.5") == (2, error) and not lab.mark.exists()
    assert train()[0] == 0 and lab.mark.exists()
