"""A member's process: forked from a server with imported modules, isolated from the others, stopped by SIGTERM."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path

from attnbench.base.errors import Failure, Stopped, interrupt
from attnbench.config.configuration import Config
from attnbench.runs.attempt import Outcome, attempt
from attnbench.runs.folder import RunFolder

POLL_SECONDS = 0.1

# Modules that the fork server imports once for all members. The first step of any of torch's optimizers imports Dynamo,
# compiled or not, which takes more than a second.
PRELOADED = [
    "attnbench.runs.run",
    "attnbench.training.tasks.classification",
    "torch.utils.tensorboard",
    "torch._dynamo",
]


class MemberProcess:
    """A process that trains a run or a pack of runs; it starts at once.

    It has the working folder of this process. If this process ends for any reason, it is asked to save.

    Args:
        configs: the run, or the runs that it trains at once; see ``attnbench.runs.packed``.
        environment: its additional variables, such as the visible GPUs and its rank.
        threads: the number of torch's threads, for all processes of the run together.
    """

    def __init__(self, configs: Sequence[Config], environment: Mapping[str, str], threads: int) -> None:
        self.folders = [RunFolder(config.run_folder) for config in configs]
        self.left = set(range(len(configs)))
        self.main = environment.get("RANK", "0") == "0"
        handle, name = tempfile.mkstemp(prefix="attnbench-", suffix=".log")
        os.close(handle)
        self.output = Path(name)
        _warm()
        context = multiprocessing.get_context("forkserver")
        self.receiver, sender = context.Pipe(duplex=False)
        self.open = True
        arguments = (list(configs), dict(environment), threads, self.output, os.getcwd(), sender)
        self.process = context.Process(target=_process, args=arguments)
        with _hidden_main_module():
            self.process.start()
        sender.close()

    @property
    def alive(self) -> bool:
        """Whether it is running; a closed pipe shows its end even if the fork server is gone."""
        return self.open and (bool(self.left) or self.process.is_alive())

    def ask_to_save(self) -> None:
        """Ask it to save and end; a second call ends it at once."""
        if self.process.is_alive():
            self.process.terminate()

    def ended(self) -> dict[int, Outcome]:
        """The outcomes of the runs that ended since the last call, by number.

        Once the process has ended, every remaining run gets an outcome. If the process was killed or exited without
        reporting one, the reason is written to status.json and its output to train.log.
        """
        outcomes = self._received()
        self.left -= outcomes.keys()
        if not self.alive:
            self.process.join()
            outcomes |= {number: self._unreported(self.folders[number]) for number in sorted(self.left)}
            self.open = False
            self.receiver.close()
            self.output.unlink(missing_ok=True)
        return outcomes

    def _received(self) -> dict[int, Outcome]:
        outcomes: dict[int, Outcome] = {}
        while self.open and self.receiver.poll():
            try:
                number, outcome = self.receiver.recv()
                outcomes[number] = outcome
            except (EOFError, OSError):  # the process ended, perhaps in the middle of a message
                self.open = False
        return outcomes

    def _unreported(self, folder: RunFolder) -> Outcome:
        path, code = str(folder.path), self.process.exitcode or 0
        if code in (-signal.SIGTERM, Stopped.code):  # stopped before it handled signals, or asked twice
            return Outcome("stopped", path, failure=Stopped("stopped without saving", path))
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        failure = Failure(how, path, "run the same command to continue it")
        if self.main:
            folder.record_failure(failure, self.output.read_text(encoding="utf-8", errors="replace"))
        return Outcome("failed", path, failure=failure, shared=len(self.folders) > 1)


def run_in_process(config: Config, environment: Mapping[str, str], threads: int, received: Sequence[int]) -> Outcome:
    """Run a member in a new process and wait for its end; each signal in ``received`` asks it to save.

    Args:
        received: the signals received so far; the list grows during the call, see ``signals``.
    """
    process, passed_on = MemberProcess([config], environment, threads), 0
    outcomes: dict[int, Outcome] = {}
    while process.alive:
        if len(received) > passed_on:
            passed_on = len(received)
            process.ask_to_save()
        time.sleep(POLL_SECONDS)
        outcomes |= process.ended()
    return outcomes[0]


@contextmanager
def signals(*kinds: signal.Signals) -> Iterator[list[int]]:
    """Collect signals of some kinds in a list, which grows as they arrive, instead of being interrupted by them."""
    received: list[int] = []
    before = [signal.signal(kind, lambda number, frame: received.append(number)) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


@cache
def _warm() -> None:
    """Start the fork server. It ignores the signals that SLURM sends to every process of a job.

    It gets this process's module search path, so that both import the same attnbench, installed or not.
    """
    forkserver.set_forkserver_preload(PRELOADED)
    kinds = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(kind, signal.SIG_IGN) for kind in kinds]
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({"PYTHONPATH": paths} if paths is not None else {})
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


@contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Hide this process's main module, which multiprocessing would needlessly import in every member."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _process(
    configs: list[Config], environment: dict[str, str], threads: int, output: Path, folder: str, sender: Connection
) -> None:
    """The main function of a member's process. A Ctrl-C in the terminal does not reach it."""
    signal.signal(signal.SIGTERM, interrupt)
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment, ATTNBENCH_CORES=str(threads))
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_save_when_orphaned, daemon=True).start()
    logging.getLogger("attnbench").setLevel(logging.INFO)  # train.log needs this level
    outcomes: dict[int, Outcome] = {}

    def ended(number: int, outcome: Outcome) -> None:
        outcomes[number] = outcome
        with suppress(BrokenPipeError):  # the launcher has ended
            sender.send((number, outcome))

    try:
        _attempt(configs, threads, ended)
    except KeyboardInterrupt:
        for number in set(range(len(configs))) - outcomes.keys():
            path = str(configs[number].run_folder)
            ended(number, Outcome("stopped", path, failure=Stopped("stopped before the first step", path)))
    sys.exit(max(outcome.failure.code if outcome.failure else 0 for outcome in outcomes.values()))


def _attempt(configs: list[Config], threads: int, ended: Callable[[int, Outcome], None]) -> None:
    import torch

    torch.set_num_threads(threads)
    if len(configs) == 1:
        ended(0, attempt(lambda: configs[0]))
    else:
        from attnbench.runs import packed

        packed.train_pack(configs, ended)


def _save_when_orphaned() -> None:
    """Send SIGTERM to this process once its launcher ends. The launcher is not its system parent, the fork server."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
