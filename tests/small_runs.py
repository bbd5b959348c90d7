"""Small runs for the tests of reliability: forked from a warm process, or started as a user starts them.

A process that imports torch takes seconds to start. The fork server has torch loaded and one run behind it, so a
run through the whole command line, in a process of its own that can be killed, starts in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# 24 steps of a network with everything that a resume may forget: dropout, batch norm, momentum, an average.
SMALL = [
    *("runtime.device=cpu", "runtime.checkpoint_steps=3", "dataset.size=4", "batch_size=128", "backbone=resnet20"),
    *(
        "backbone.depth=8",
        "attention=sb",
        "placement.stages=[3]",
        "attention.dropout=0.2",
        "schedule.epochs=2",
        "schedule.ema_decay=0.9",
    ),
]
STEPS = 12  # of an epoch

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Ended(NamedTuple):
    """How a run ended: its exit code (negative: the signal that killed it), what it said, its training time."""

    code: int
    stderr: str
    seconds: float = 0.0

    @property
    def errors(self) -> list[str]:
        """The lines that a failure leaves."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


class Kill(NamedTuple):
    """When to kill -9 a run: so many seconds after it began, or after its first checkpoint."""

    seconds: float
    after_checkpoint: bool = True


class ForkServer:
    """Forks runs of ``python train.py``, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.small_runs"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdin=pipe, stdout=pipe)

    def run(
        self, outputs: Path, *overrides: str, before: Callable[[], object] = int, kill: Kill | None = None
    ) -> Ended:
        """One run of SMALL; ``before`` (a module's function or a partial of one) is called in its process first."""
        return self.train(outputs, *_words(outputs, overrides), before=before, kill=kill)

    def train(self, outputs: Path, *words: str, before: Callable[[], object] = int, kill: Kill | None = None) -> Ended:
        """``python train.py`` with these words, which set ``paths.outputs``."""
        assert self.process.stdin and self.process.stdout
        pickle.dump((words, str(outputs), before, kill), self.process.stdin)
        self.process.stdin.flush()
        return Ended(*pickle.load(self.process.stdout))

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def reference(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of SMALL, uninterrupted; ``training`` are its seconds from the first checkpoint on.

    ``predictions`` are the bytes of its predictions.csv.
    """
    outputs = tmp_path_factory.mktemp("reference")
    end = forks.run(outputs)
    assert end.code == 0, end.stderr
    told = (folder(outputs) / "predictions.csv").read_bytes()
    return result(outputs) | {"training": end.seconds, "predictions": told}


def killed_at(epoch: int, step: int) -> None:
    """In a run's process: kill -9 itself after so many steps of an epoch, counted from 0."""
    from attnbench.training.engine import Saver

    def dies(method: Callable[..., None]) -> Callable[..., None]:
        def call(self: Saver, state: Any, *args: Any) -> None:
            method(self, state, *args)
            if (state.epoch, state.step) == (epoch, step):
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    Saver.after_step = dies(Saver.after_step)  # type: ignore[method-assign]
    Saver.after_epoch = dies(Saver.after_epoch)  # type: ignore[method-assign]


def in_two_processes() -> None:
    """In a run's process: become the two processes of a run, as torchrun starts them; this one is the main process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    rank = "1" if os.fork() == 0 else "0"
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port)


def interrupted_in(where: str, call: int, kind: signal.Signals, then: float = 0.0, again: bool = False) -> None:
    """In a run's process: a signal arrives at the given call of a function, from 1, which then takes its time."""
    module, _, name = where.partition(":")
    owner: Any = import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    plain, calls = getattr(owner, last), 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), kind)
            time.sleep(then)
            if again:
                os.kill(os.getpid(), kind)
                time.sleep(30)
        return plain(*args, **options)

    setattr(owner, last, interrupted)


def start(outputs: Path, *overrides: str, processes: int = 1) -> subprocess.Popen[str]:
    """Start ``python train.py`` (under torchrun for several processes) on SMALL."""
    launcher = torchrun(processes) if processes > 1 else []
    command = [sys.executable, *launcher, "train.py", *_words(outputs, overrides)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=pipe, stdout=pipe, text=True)


def _words(outputs: Path, overrides: tuple[str, ...]) -> list[str]:
    """The words of a command line; the attention's options go where another attention comes."""
    others = any(word.startswith("attention=") for word in overrides)
    small = [word for word in SMALL if not (others and word.startswith("attention."))]
    return [*small, f"paths.outputs={outputs}", *overrides]


def torchrun(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def ended(process: subprocess.Popen[str], timeout: float = 100) -> Ended:
    _, stderr = process.communicate(timeout=timeout)
    return Ended(process.returncode, stderr)


@contextmanager
def running(outputs: Path, *overrides: str, processes: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A run that has just saved its first checkpoint, and that is gone in the end."""
    before = checkpointed(outputs)
    process = start(outputs, *overrides, processes=processes)
    try:
        wait_for(lambda: checkpointed(outputs) != before or process.poll() is not None)
        yield process
    finally:
        process.terminate()
        with suppress(ValueError):  # its output has been read
            process.communicate(timeout=40)


def wait_for(condition: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def folder(outputs: Path) -> Path:
    """The folder of the only run there."""
    (path,) = (outputs / "runs").glob("*/*/*/seed*")
    return path


def checkpointed(outputs: Path) -> int:
    """When the last checkpoint was written, in nanoseconds; 0 for never."""
    for path in (outputs / "runs").glob("*/*/*/seed*/checkpoints/last.pt"):
        with suppress(FileNotFoundError):  # it is being replaced
            return path.stat().st_mtime_ns
    return 0


def result(outputs: Path) -> dict[str, Any]:
    return json.loads((folder(outputs) / "result.json").read_text())


def epochs(outputs: Path) -> list[int]:
    """The epochs that metrics.jsonl has lines of."""
    lines = (folder(outputs) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def strays(outputs: Path) -> list[str]:
    """Files of a run's folder that only an interrupted write leaves."""
    return [str(p) for p in folder(outputs).rglob("*") if p.name.endswith(".tmp") or p.name == "next.pt"]


def _serve() -> None:
    """Fork a run for each order on stdin."""
    import torch

    from attnbench.cli import main  # noqa: F401 - all that a run imports
    from attnbench.config import composition
    from attnbench.launch import sweep  # noqa: F401 - all that a run imports
    from attnbench.runs import attempt, run  # noqa: F401 - all that a run imports

    torch.set_num_threads(1)  # a process that has started OpenMP threads cannot fork
    orders, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a run prints is no reply
    with tempfile.TemporaryDirectory() as warm:
        run.train(composition.compose([*SMALL, "schedule.epochs=1", f"paths.outputs={warm}"]))
    while order := _next(orders):
        words, outputs, before, kill = order
        reader, writer = os.pipe()
        pid = os.fork() or _train(words, before, writer)
        os.close(writer)
        code, seconds = _watch(pid, Path(outputs), kill)
        with open(reader) as stderr:
            pickle.dump((code, stderr.read(), seconds), replies)
        replies.flush()


def _next(orders: Any) -> Any:
    try:
        return pickle.load(orders)
    except EOFError:
        return None


def _train(words: list[str], before: Callable[[], object], stderr: int) -> int:
    """What the forked process does: the command line's own way through a run. It does not return."""
    from attnbench.cli import main, train

    code = 70
    try:
        os.dup2(stderr, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.argv = ["train.py", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        before()
        main.guarded(train.main)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    finally:
        os._exit(code)


def _watch(pid: int, outputs: Path, kill: Kill | None) -> tuple[int, float]:
    """Wait for a run's end, or bring it about: its exit code, and the seconds since its first checkpoint."""
    began, first, status = time.monotonic(), 0.0, 0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = time.monotonic()
        if not first and checkpointed(outputs):
            first = now
        since = first if kill and kill.after_checkpoint else began
        if kill and since and now - since > kill.seconds:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - (first or began)


if __name__ == "__main__":
    _serve()
