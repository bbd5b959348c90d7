"""What a release is made of: the source archive, the wheel, and the wheel installed where nothing else of ours is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from attnbench import __version__
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    return folder


def files(*folders: str) -> Iterator[str]:
    """The files of the repository's folders, without those that git ignores."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(ROOT))


def test_the_wheel_has_the_package_and_its_options_and_nothing_else(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    about = f"attnbench-{__version__}.dist-info"
    meta = {f"{about}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    options = {f"attnbench/{name}" for name in files("configs")}
    assert names == {*files("attnbench"), *options, *meta}
    assert {"attnbench/data/images/jpeg.c", "attnbench/data/in_memory/digits.csv.gz"} <= names


def test_the_source_archive_has_all_that_tests_and_readers_need(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "outputs/README.md"}
    made = {"PKG-INFO", ".gitignore"}
    assert names - made == {
        *files("attnbench", "configs", "tests", "docs", "scripts"),
        *pages,
        *{"Makefile", "pyproject.toml", "train.py"},
    }


def test_a_citation_names_the_version_that_is_released() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``attnbench`` of an environment that has the wheel; its dependencies are those of this environment."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")  # our own .pth is not read
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    install = [*pip, "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=240, env=clean())
    return home / "bin" / "attnbench"


def clean() -> dict[str, str]:
    """This environment's variables without those that lead to the repository."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ATTNBENCH") and k != "PYTHONPATH"}


def test_the_installed_command_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    def attnbench(*arguments: str) -> str:
        command = [str(installed), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert attnbench("--version") == f"attnbench {__version__}\n"
    assert "attnbench train attention=eca" in attnbench("--help")
    assert "269,722" in attnbench("count", "backbone=resnet20", "attention=none", "dataset=digits")
    assert "sb/9" in attnbench("table", "sb/9", "--plan", "--no-probe")
    assert "done" in attnbench("train", "attention=eca", "schedule.epochs=1", "dataset.size=8", "backbone.depth=8")
    assert list((tmp_path / "outputs/runs/digits/resnet20").glob("eca-block-*/seed0/result.json"))
    where = [str(installed.parent / "python"), "-c", "import attnbench; print(attnbench.__file__)"]
    assert str(installed.parents[1]) in subprocess.check_output(where, cwd=tmp_path, env=clean(), text=True)
