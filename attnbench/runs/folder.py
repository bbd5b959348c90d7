"""A run's folder: its lock, its status and its files."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.base.errors import KINDS, BusyError, Failure, main_process

# What a start of a run writes, besides folders.
FILES = (*("result.json", "data.json", "status.json", "metrics.jsonl", "gauges.jsonl", "train.log", "predictions.csv"),)
STARTED = ("result.json", "data.json", "metrics.jsonl")  # what a start writes once it has its data
PARENTS = 3  # the folders of a run's name above that of its seed
PACKED = "packed run "  # the name of a packed run's thread is this prefix and the run's folder


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; created when it is first held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def result(self) -> dict[str, Any] | None:
        """The contents of result.json, or None if the run is not finished."""
        result = files.read_json(self.path / "result.json")
        return result if isinstance(result, dict) and result.get("status") == "done" else None

    def refuse_busy(self) -> None:
        """Refuse a folder that another process holds, without writing to it.

        Under torchrun, the main process holds the folder for the others, so only the main process checks.

        Raises:
            BusyError: another process holds it.
        """
        if main_process() and (self.path / ".lock").exists():
            with files.changing(self.path), open(self.path / ".lock", "r+", encoding="utf-8") as lock:
                self._acquire(lock.fileno())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Create the folder and lock it. The system releases the lock when the process ends, however it ends.

        Raises:
            BusyError: another process holds the folder.
            StorageError: the folder cannot be created.
        """
        files.make_folder(self.path)
        with files.changing(self.path):
            lock = open(self.path / ".lock", "ab", buffering=0)  # noqa: SIM115 - held until the end
        with lock:
            self._acquire(lock.fileno())
            with files.changing(self.path):
                lock.truncate(0)
                lock.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
            yield

    def _acquire(self, descriptor: int) -> None:
        try:  # not flock: data workers would inherit it and keep it for seconds after a kill
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = (self.path / ".lock").read_text(encoding="utf-8").strip()
            raise BusyError(f"another process holds this run: {holder}", self.path, "wait for it or stop it") from None

    def clear(self) -> None:
        """Remove the files of an earlier start, for ``resume=never``."""
        with files.changing(self.path):
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            folders = ("tb", "export", "predictions", "report")
            for path in filter(Path.exists, (self.checkpoints, *(self.path / name for name in folders))):
                shutil.rmtree(path)

    def discard(self) -> None:
        """Remove the folder of a start that failed before it had read its data, and parents that are empty then."""
        if any((self.path / name).exists() for name in (*STARTED, "checkpoints")):
            return
        with suppress(Failure, OSError), self.hold():
            shutil.rmtree(self.path)
        for parent in self.path.parents[:PARENTS]:
            with suppress(OSError):
                parent.rmdir()

    def status(self, status: str, **about: Any) -> None:
        """Write the run's status to status.json: running, stopped, failed or done."""
        record = {"status": status, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **about}
        files.write_json(self.path / "status.json", record)

    def record(self) -> dict[str, Any]:
        """The contents of status.json: the status, the time, and the process that wrote it; empty without a file."""
        status = files.read_json(self.path / "status.json")
        return status if isinstance(status, dict) else {}

    def failure_since(self, before: Mapping[str, Any]) -> Failure | None:
        """The failure or stop that was written to status.json after its contents were ``before``, or None."""
        status = self.record()
        if status == before or status.get("status") not in ("failed", "stopped"):
            return None
        return KINDS.get(status["code"], Failure)(status["error"])

    def record_failure(self, failure: Failure, printed: str) -> None:
        """Record the failure of a process that ended before it could do so itself, and what it had printed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.status("failed", error=str(failure), code=failure.code, traceback=printed)
        with open(self.path / "train.log", "a", encoding="utf-8") as log:
            log.write(printed + f"\n{failure}\n")

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write ``name`` as JSON, completely or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        files.write_json(self.path / name, dict(value))

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Copy the log to train.log, without the messages of other runs in this process."""
        with files.changing(self.path):
            handler = _Log(self.path / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        handler.addFilter(_of_this_run(threading.current_thread()))
        logger = logging.getLogger("attnbench")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            with suppress(OSError):
                handler.close()


def _of_this_run(here: threading.Thread) -> Callable[[logging.LogRecord], bool]:
    """A filter for train.log: drop records from the threads of other packed runs."""
    return lambda record: record.thread == here.ident or not (record.threadName or "").startswith(PACKED)


class _Log(logging.FileHandler):
    """A log file that ignores write errors; a full disk is reported once, by a file that the run needs."""

    def handleError(self, record: logging.LogRecord) -> None: ...
