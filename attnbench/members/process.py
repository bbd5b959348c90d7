"""A member's process: forked from a warm one, out of the others' reach, asked to save by SIGTERM."""

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path

from attnbench.attempt import Outcome, attempt
from attnbench.config import Config
from attnbench.errors import Failure, Stopped
from attnbench.folder import RunFolder

POLL_SECONDS = 0.1

# Imported once, in the process that the members' are forked from, and not once a member.
PRELOADED = ["attnbench.run", "attnbench.tasks.classification", "torch.utils.tensorboard"]


class MemberProcess:
    """A run in a process of its own, which begins at once.

    It has this process's working folder, and it is asked to save when this process ends, however that ends.

    Args:
        config: the run.
        environment: variables for it: the GPUs that it may see, its rank.
        threads: of torch, for all processes of the run.
    """

    def __init__(self, config: Config, environment: Mapping[str, str], threads: int) -> None:
        self.folder = RunFolder(config.run_folder)
        self.main = environment.get("RANK", "0") == "0"
        handle, name = tempfile.mkstemp(prefix="attnbench-", suffix=".log")
        os.close(handle)
        self.output = Path(name)
        _warm()
        context = multiprocessing.get_context("forkserver")
        self.receiver, sender = context.Pipe(duplex=False)
        arguments = (config, dict(environment), threads, self.output, os.getcwd(), sender)
        self.process = context.Process(target=_process, args=arguments)
        with _nameless_main():
            self.process.start()
        sender.close()

    @property
    def alive(self) -> bool:
        """Whether it runs; its pipe says so too, where the process that it was forked from is gone."""
        return self.process.is_alive() or not self.receiver.poll()

    def ask_to_save(self) -> None:
        """Ask it to save and end; asked again, to end at once."""
        if self.process.is_alive():
            self.process.terminate()

    def outcome(self) -> Outcome:
        """How it ended, once it has.

        The end of a process that did not say it itself, killed or by ``sys.exit``, is written into status.json, and
        what it had printed into train.log.
        """
        self.process.join()
        try:
            outcome: Outcome = self.receiver.recv()
        except (EOFError, OSError):  # nothing, or not all of it
            outcome = self._silent(self.process.exitcode or 0)
        self.receiver.close()
        self.output.unlink(missing_ok=True)
        return outcome

    def _silent(self, code: int) -> Outcome:
        path = str(self.folder.path)
        if code == -signal.SIGTERM:  # before it could listen
            return Outcome("stopped", path, failure=Stopped("stopped before the first step", path))
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        failure = Failure(how, path, "the same command continues it")
        if self.main:
            self.folder.died(failure, self.output.read_text(encoding="utf-8", errors="replace"))
        return Outcome("failed", path, failure=failure)


def attended(config: Config, environment: Mapping[str, str], threads: int, heard: Sequence[int]) -> Outcome:
    """Run a member in a process of its own and wait for its end; each signal in ``heard`` asks it to save.

    Args:
        heard: grows while this waits; see ``signals``.
    """
    process, passed_on = MemberProcess(config, environment, threads), 0
    while process.alive:
        if len(heard) > passed_on:
            passed_on = len(heard)
            process.ask_to_save()
        time.sleep(POLL_SECONDS)
    return process.outcome()


@contextmanager
def signals(*kinds: signal.Signals) -> Iterator[list[int]]:
    """The signals of some kinds that come, in a list instead of as interruptions."""
    came: list[int] = []
    before = [signal.signal(kind, lambda number, frame: came.append(number)) for kind in kinds]
    try:
        yield came
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


@cache
def _warm() -> None:
    """Start the process that members are forked from, deaf to what SLURM sends to every process of a job.

    It shall import what this process imports, also where the package is not the one that is installed.
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
def _nameless_main() -> Iterator[None]:
    """Hide this process's main module, which multiprocessing would import in every member, for nothing."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _process(
    config: Config, environment: dict[str, str], threads: int, output: Path, folder: str, sender: Connection
) -> None:
    """What a member's process does; the terminal's Ctrl-C does not reach it."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment, ATTNBENCH_CORES=str(threads))
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_save_when_orphaned, daemon=True).start()
    logging.getLogger("attnbench").setLevel(logging.INFO)  # for train.log
    outcome = _attempted(config, threads)
    sender.send(outcome)
    if outcome.failure:
        sys.exit(outcome.failure.code)


def _attempted(config: Config, threads: int) -> Outcome:
    try:
        import torch

        torch.set_num_threads(threads)
        return attempt(lambda: config)
    except KeyboardInterrupt:
        path = str(config.run_folder)
        return Outcome("stopped", path, failure=Stopped("stopped before the first step", path))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _save_when_orphaned() -> None:
    """Wait for the end of the process that started this one, which is not the one that it was forked from."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
