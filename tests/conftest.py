"""What several test files share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs on two workers

import torch

from attnbench.base.errors import DataError, Failure
from attnbench.cli import main
from attnbench.config import composition, hydra_state
from attnbench.config.configuration import Config
from attnbench.runs import run

pytest_plugins = ["tests.data_fixtures", "tests.small_runs", "tests.figure_fixtures"]

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)

Check = Callable[[Path], tuple[int, list[str]]]


def refused(call: Callable[[], object], kind: type[Failure], *words: str) -> str:
    """The one line of a refusal, which holds all of the words."""
    with pytest.raises(kind) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


@pytest.fixture(scope="session", autouse=True)
def one_hydra() -> Iterator[None]:
    """Compose a worker's configurations with one Hydra: reading the option files anew takes most of the time.

    Option files in other folders than the checkout's are read anew, as a test may change them.
    """
    with hydra_state.prepared():
        hydra_state.loader()
        yield


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., Config]:
    """Configurations whose outputs lie in the test's own folder."""
    return lambda *overrides: composition.compose([*overrides, f"paths.outputs={tmp_path}/outputs"])


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a run on the digits, done; what it evaluates is an average, not its last weights.

    For tests that read it; those that change its folder copy it.
    """
    words = "runtime.device=cpu backbone=resnet20 attention=eca attention.kernel_size=3 dataset.size=8 batch_size=128 "
    words += "schedule.epochs=1 schedule.ema_decay=0.5"
    done = composition.compose([*words.split(), f"paths.outputs={tmp_path_factory.mktemp('trained')}"])
    run.train(done)
    return done


@pytest.fixture
def attnbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own, with outputs in the test's own folder."""

    def call(*words: str, script: str = "train.py") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / script), *words]
        environment = os.environ | {"ATTNBENCH_OUTPUTS": str(tmp_path / "outputs")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)

    return call


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """``attnbench`` with arguments, in this process: its exit code and what it prints."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["attnbench", *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            main.main()
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    monkeypatch.setenv("ATTNBENCH_OUTPUTS", str(tmp_path / "outputs"))
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    yield call
    for kind, handler in handlers.items():  # a command sets its own
        signal.signal(kind, handler)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """The exit code of ``attnbench data check`` and the lines that it prints."""

    def call(root: Path) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["attnbench data", "check", str(root)])
        capsys.readouterr()
        code = 0
        try:
            main.command("data")()
        except DataError as error:
            code = error.code
        return code, capsys.readouterr().out.splitlines()

    return call


# The files that take longest, so that they start first and no worker is left alone with one at the end.
LONG = [
    "test_resume",
    "test_detection_runs",
    "test_detectors",
    "test_pool",
    "test_every_attention",
    "test_cli",
    "test_tables",
    "test_ddp",
    "test_state",
    "test_config",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
