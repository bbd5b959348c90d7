"""The pages name what exists: the drawing of the house, paths, links and dotted names."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_floors import PACKAGE, ROOMS, WINGS

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "outputs/README.md", *(ROOT / "docs").rglob("*.md")]
)
SOURCES = sorted(path for folder in ("attnbench", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))

# What docs/adding-an-attention.md lets its reader write.
THE_READERS = {"attnbench/models/attention/sm.py", "configs/attention/sm.yaml", "attnbench.models.attention.sm.sm"}
THE_READERS |= {"mynets/nets.py"}  # of docs/adding-a-backbone.md

FOLDERS = "attnbench|configs|docs|scripts|tests"
PATH = re.compile(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*\w/?")
DOTTED = re.compile(r"(?<![\w/.-])attnbench(?:\.[A-Za-z_]\w*)+")
CODE = re.compile(r"`([\w./-]+\.(?:py|c|sbatch))`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def drawing() -> list[tuple[str, list[list[str]]]]:
    """The wings that docs/design.md draws, highest first, each with its lines of rooms; folders end in a slash."""
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    house = page.partition("    attnbench/\n")[2].partition("\n\n")[0]
    wings: list[tuple[str, list[list[str]]]] = []
    for line in house.splitlines():
        names = re.split(r"  +", line.strip())[0].split()
        if re.match(r" {6}\w", line):
            wings.append((names[0], []))
        else:
            wings[-1][1].append(names)
    return wings


def folders_and_modules(folder: Path) -> set[str]:
    """What lies in a folder of the package: ``name/`` for a folder, ``name`` for a module."""
    folders = {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
    return folders | {path.stem for path in folder.glob("*.py") if not path.name.startswith("__")}


def test_the_drawing_has_every_wing_and_every_room_once() -> None:
    drawn = drawing()
    assert sorted(wing for wing, _ in drawn) == sorted(folders_and_modules(PACKAGE) - {"configs/"})
    for wing, lines in drawn:
        assert sorted(name for line in lines for name in line) == sorted(folders_and_modules(PACKAGE / wing))


def floor(floors: list[set[str]], name: str) -> int:
    return next(i for i, names in enumerate(floors) if name.strip("/") in names)


def test_the_drawing_has_the_order_of_the_floors() -> None:
    drawn = drawing()
    wings = [floor(WINGS, wing) for wing, _ in drawn]
    assert wings == sorted(wings, reverse=True)
    for wing, lines in drawn:
        floors = ROOMS[wing.strip("/")]
        known = set.union(*floors)  # the folders of data/ are several rooms each
        rooms = [{floor(floors, name) for name in line if name.strip("/") in known} for line in lines]
        assert all(len(line) <= 1 for line in rooms), f"a line of {wing} is on two floors"
        order = [one for line in rooms for one in line]
        assert order == sorted(order, reverse=True), wing


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def missing_paths(text: str) -> set[str]:
    """The paths from the repository's root that a text names and that do not exist."""
    return {path for path in PATH.findall(text) if not (ROOT / path).exists()} - THE_READERS


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_on_a_page_exist(page: Path) -> None:
    assert not missing_paths(page.read_text(encoding="utf-8"))


def test_paths_in_the_source_exist() -> None:
    """An error that names a file to edit, among others."""
    found = {page_name(path): missing_paths(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert not {name: missing for name, missing in found.items() if missing}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_file_in_code_type_is_found_from_the_root_or_from_the_package(page: Path) -> None:
    named = set(CODE.findall(page.read_text(encoding="utf-8"))) - THE_READERS
    assert not {name for name in named if not ((ROOT / name).exists() or (PACKAGE / name).exists())}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_on_a_page_lead_somewhere(page: Path) -> None:
    targets = (target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target)
    assert not {target for target in targets if not (page.parent / target).exists()}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or can be had from one by its attributes."""
    parts, modules = name.split("."), list(importable(name))
    if not modules:
        return False
    found = importlib.import_module(modules[-1])
    for part in parts[len(modules) :]:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def importable(name: str) -> Iterator[str]:
    """The leading parts of a dotted name that are modules: ``a``, ``a.b``, ..."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return
        yield module
        if not spec.submodule_search_locations:
            return


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_dotted_names_on_a_page_exist(page: Path) -> None:
    named = set(DOTTED.findall(page.read_text(encoding="utf-8"))) - THE_READERS
    assert not {name for name in named if not resolves(name)}


def test_every_test_that_the_protocols_name_exists() -> None:
    """A name may be shortened by dots: ``test_the_rates_of_..._source``."""
    page = (ROOT / "docs" / "protocols.md").read_text("utf-8")
    functions = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    named = set(re.findall(r"`(test_[\w.]+)`", page))
    patterns = {
        name: re.compile(re.escape(name).replace(re.escape("..."), r"\w+"))
        for name in named
        if not name.endswith(".py")
    }
    assert len(patterns) >= 60
    lost = [name for name, pattern in patterns.items() if not any(pattern.fullmatch(one) for one in functions)]
    assert not lost
