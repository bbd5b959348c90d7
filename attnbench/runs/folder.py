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
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from attnbench.base import console, files
from attnbench.base.errors import KINDS, BusyError, Failure, StorageError, main_process
from attnbench.runs import record_faults

# What a start of a run writes, besides folders.
FILES = (*("result.json", "data.json", "status.json", "metrics.jsonl", "gauges.jsonl", "train.log", "predictions.csv"),)
SMALL = 2**24  # bytes of a JSON file in a run's folder
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
        """The contents of result.json, or None if the run is not finished.

        Raises:
            StorageError: an entry is not of its type, so somebody has changed the file.
        """
        path = self.path / "result.json"
        result = files.read_object(path, SMALL)
        if result.get("status") != "done":
            return None
        if fault := record_faults.fault_of_result(result):
            todo = "restore the file, or remove it and train on: the last checkpoint gives it again"
            raise StorageError(f"the record of this run is damaged: {fault}", path, todo)
        return result

    def refuse_busy(self) -> None:
        """Refuse a folder that another process holds, without writing to it.

        Under torchrun, the main process holds the folder for the others, so only the main process checks.

        Raises:
            BusyError: another process holds it.
        """
        if main_process() and (self.path / ".lock").exists():
            with files.changing(self.path), open(files.appending(self.path / ".lock"), "a") as lock:
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
            lock = open(files.appending(self.path / ".lock"), "ab", buffering=0)  # noqa: SIM115 - held until the end
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
            holder = "unknown"
            with suppress(OSError, ValueError):
                holder = files.read_text(self.path / ".lock").strip()[:200]
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
        return files.read_object(self.path / "status.json", SMALL)

    def failure_since(self, before: Mapping[str, Any]) -> Failure | None:
        """The failure or stop that was written to status.json after its contents were ``before``, or None."""
        status = self.record()
        if status == before or status.get("status") not in ("failed", "stopped"):
            return None
        code = status.get("code")
        return KINDS.get(code if isinstance(code, int) else 1, Failure)(str(status.get("error", "")))

    def record_failure(self, failure: Failure, printed: str) -> None:
        """Record the failure of a process that ended before it could do so itself, and what it had printed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.status("failed", error=str(failure), code=failure.code, traceback=printed)
        with files.changing(self.path), open(files.appending(self.path / "train.log"), "a", encoding="utf-8") as log:
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
        handler.setFormatter(console.SafeFormatter("%(asctime)s %(message)s"))
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

    def _open(self) -> TextIOWrapper:
        return open(files.appending(Path(self.baseFilename)), "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None: ...
