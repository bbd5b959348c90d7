"""The layout of DESIGN: a module imports only from lower floors, and few modules know Hydra."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Lowest first. A package is one room: its files may import one another.
FLOORS = [
    {"errors", "ops", "interleaved"},
    {"storage", "options", "words", "printing", "measures"},
    {"insertion", "declaration", "folder"},
    {"config"},
    {"attention", "placement", "backbones", "data", "optim", "runtime", "recorder", "state"},
    {"weights", "feed", "complexity", "tail", "folding", "stacking", "update"},
    {"stored"},
    {"engine", "detection"},
    {"tasks", "tables"},
    {"build", "results"},
    {"trained", "comparison"},
    {"figures", "run", "inspection", "export", "evaluation", "probe", "prediction"},
    {"ranks"},
    {"attempt"},
    {"pack"},
    {"members"},
    {"sweep", "launcher"},
    {"tabling", "compare", "figuring", "speed", "curation"},
    {"cli"},
    {"__main__"},
]
KNOW_HYDRA = {"launcher", "config", "sweep", "cli", "run", "build", "tables"}
PACKAGE = ROOT / "attnbench"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    here = room(path)
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("attnbench.")}
    upward = {there for there in rooms - {here, "__version__"} if floor(there) >= floor(here)}
    assert not upward


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_composition_knows_hydra(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    assert room(path) in KNOW_HYDRA or not libraries & {"hydra", "omegaconf"}
