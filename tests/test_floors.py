"""The wings of the house: a module imports only from lower floors, and few modules know Hydra."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The wings, lowest first: a wing imports from those below it. Wings on one floor do not know each other.
WINGS = [{"base"}, {"config"}, {"models", "data"}, {"training"}, {"runs"}, {"launch", "reports"}, {"cli"}, {"__main__"}]

# The rooms of each wing, lowest first. A room that is a folder is one room: its files may import one another.
ROOMS: dict[str, list[set[str]]] = {
    "base": [
        {"escape"},
        {
            "errors",
            "moved",
            "benchmark",
            "console",
            "cores",
            "allocator",
            "compile_c",
            "draw_boxes",
            "contact_sheet",
            "secrets",
            "plain_yaml",
        },
        {"files"},
    ],
    "config": [
        {"options", "renamed", "first_release"},
        {"annotations", "naming", "initial_weights"},
        {"builders", "source_code"},
        {"option_files"},
        {"pinned"},
        {"configuration", "hydra_state"},
        {"catalog", "complaints"},
        {"composition"},
        {"stored"},
    ],
    "data": [
        {"dataset", "record"},
        {"sampling", "matching"},
        {
            "loader",
            "in_memory.resident",
            "images.crops",
            "images.threads",
            "detection.hsv",
            "images.contents",
            "images.suffixes",
            "fetching.releases",
            "fetching.unpack",
        },
        {
            "image_folders.folder",
            "images.formats",
            "exports.export",
            "fetching.transfer",
            "fetching.imagenet",
        },
        {
            "images.pillow",
            "images.survey",
            "image_folders.division",
            "image_folders.tar_shards",
            "image_folders.labels",
            "exports.coco",
            "exports.voc",
            "exports.yolo",
        },
        {"images.jpeg", "image_folders.own", "image_folders.earlier_shards", "exports.tools", "fetching.fetch"},
        {"images.files", "images.checking", "image_folders.shards", "image_folders.parquet", "in_memory.cifar_batches"},
        {
            "image_folders.datasets",
            "image_folders.alone",
            "image_folders.sharding",
            "detection.scenes",
            "in_memory.cifar",
        },
        {"in_memory.digits", "in_memory.synthetic", "layouts"},
        {"detection.annotated", "detection.box_augment"},
        {"detection.coco_outlines", "detection.voc_xml"},
        {"detection.coco", "detection.voc", "detection.digits_det"},
    ],
    "models": [
        {"insertion", "ops", "stock_attention"},
        {"deferred", "dry_run"},
        {"attention", "placement", "backbones"},
        {"regions"},
        {"freezing"},
        {"weights", "complexity", "fused", "folding", "stacking", "detection"},
        {"checkpoint"},
        {"warm_start"},
        {"factory"},
        {"inspection"},
    ],
    "training": [
        {"metrics", "optim", "parts", "runtime", "state"},
        {"checkpoints", "recorder", "feed", "step", "tasks"},
        {"engine", "setup"},
    ],
    "runs": [
        {"record_faults"},
        {
            *("folder", "data", "environment", "initial_weights"),
            *("preprocessing", "predictions", "pictures"),
        },
        {"status", "elsewhere", "extension", "detected", "classified"},
        {"results", "load", "probe", "run"},
        {"programs", "stock_networks"},
        {"evaluate", "export", "predict", "processes"},
        {"hub"},
        {"attempt"},
        {"packed"},
    ],
    "launch": [
        {"process", "sweep"},
        {"executor"},
        {"packing", "progress", "submitit_job"},
        {"pool", "ray_cluster", "submitit_local", "submitit_slurm"},
        {"hydra_launchers"},
    ],
    "reports": [
        {"paper_tables", "statistics", "writing"},
        {"counts", "composer"},
        {"rows"},
        {"plan", "report"},
        {"comparison", "formats", "paired_tests"},
        {"figures"},
        {"comparison_formats", "evaluation"},
    ],
    "cli": [
        {"parser"},
        {"compare", "count", "data", "eval", "export", "figure", "predict", "show", "speed", "table", "train"},
        {"main"},
    ],
}
KNOW_HYDRA = {
    *("config.option_files", "config.pinned", "config.hydra_state", "config.complaints", "config.composition"),
    *("launch.hydra_launchers", "launch.sweep", "cli.train"),
}
PACKAGE = ROOT / "attnbench"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name(path: Path) -> str:
    """A module's dotted name inside the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name(path) for path in FILES}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    inside = (one.removeprefix("attnbench.") for one in imported(path) if one.startswith("attnbench."))
    return {one if one in MODULES else one.rpartition(".")[0] for one in inside} & MODULES


def floor_of_wing(module: str) -> int:
    return next(i for i, wings in enumerate(WINGS) if module.split(".")[0] in wings)


def room(module: str) -> tuple[int, str]:
    """The floor of a module's room within its wing, and the room's name."""
    wing, _, rest = module.partition(".")
    return next((i, r) for i, rooms in enumerate(ROOMS[wing]) for r in rooms if rest == r or rest.startswith(f"{r}."))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    here, upward = name(path), set()
    for there in modules(path) - {here}:
        if here.split(".")[0] != there.split(".")[0]:
            if floor_of_wing(there) >= floor_of_wing(here):
                upward.add(there)
        elif room(there)[1] != room(here)[1] and room(there)[0] >= room(here)[0]:
            upward.add(there)
    assert not upward


def test_the_root_holds_the_wings_alone() -> None:
    wings = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert wings - {"configs"} == set.union(*WINGS) - {"__main__"}
    assert {path.name for path in PACKAGE.glob("*.*")} == {"__init__.py", "__main__.py"}


def test_every_command_is_a_file_of_its_name() -> None:
    from attnbench.cli.main import COMMANDS

    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__", "main", "parser"} == set(COMMANDS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_the_composition_knows_hydra(path: Path) -> None:
    libraries = {one.split(".")[0] for one in imported(path)}
    assert name(path) in KNOW_HYDRA or not libraries & {"hydra", "omegaconf"}
