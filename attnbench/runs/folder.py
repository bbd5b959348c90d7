"""A run's folder: who holds it, how the run stands, what it left."""

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

PACKED = "packed run "  # how the names of threads begin that are a run each


class RunFolder:
    """The folder of one run.

    Args:
        path: where it lies; made when first held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def result(self) -> dict[str, Any] | None:
        """What the finished run left, or None if it has not finished."""
        result = files.read_json(self.path / "result.json")
        return result if isinstance(result, dict) and result.get("status") == "done" else None

    def refuse_busy(self) -> None:
        """Raise BusyError if another run holds the folder; writes nothing.

        The main process holds it for all that torchrun starts.
        """
        if main_process() and (self.path / ".lock").exists():
            with files.changing(self.path), open(self.path / ".lock", "r+", encoding="utf-8") as lock:
                self._acquire(lock.fileno())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Make the folder and hold it; the system lets go when the process ends, however it ends.

        Raises:
            BusyError: another process holds it.
            StorageError: it cannot be made.
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
        try:  # not flock, which data workers would inherit and hold on to for seconds after a kill
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = (self.path / ".lock").read_text(encoding="utf-8").strip()
            raise BusyError(f"another process holds this run: {holder}", self.path, "wait for it or stop it") from None

    def clear(self) -> None:
        """Remove what an earlier start left, for ``resume=never``."""
        with files.changing(self.path):
            for name in ("result.json", "data.json", "status.json", "metrics.jsonl", "gauges.jsonl", "train.log"):
                (self.path / name).unlink(missing_ok=True)
            for path in filter(
                Path.exists, (self.checkpoints, self.path / "tb", self.path / "export", self.path / "predictions")
            ):
                shutil.rmtree(path)

    def status(self, status: str, **about: Any) -> None:
        """Say how the run stands: running, stopped, failed or done."""
        record = {"status": status, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **about}
        files.write_json(self.path / "status.json", record)

    def record(self) -> dict[str, Any]:
        """What status.json holds: how the run stands, and which process said so when; empty if there is none."""
        status = files.read_json(self.path / "status.json")
        return status if isinstance(status, dict) else {}

    def said(self, before: Mapping[str, Any]) -> Failure | None:
        """The failure or stop that status.json has spoken of since it was ``before``, or None."""
        status = self.record()
        if status == before or status.get("status") not in ("failed", "stopped"):
            return None
        return KINDS.get(status["code"], Failure)(status["error"])

    def died(self, failure: Failure, printed: str) -> None:
        """Write down the end of a process that could not do it itself, and what it had printed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.status("failed", error=str(failure), code=failure.code, traceback=printed)
        with open(self.path / "train.log", "a", encoding="utf-8") as log:
            log.write(printed + f"\n{failure}\n")

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write ``name`` as JSON, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        files.write_json(self.path / name, dict(value))

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Copy the log to train.log, but for what other runs in this process say."""
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
    """In a pack each run has a thread of its own, named by its folder."""
    return lambda record: record.thread == here.ident or not (record.threadName or "").startswith(PACKED)


class _Log(logging.FileHandler):
    """A log that does without what it cannot write: a full disk is reported once, by what matters."""

    def handleError(self, record: logging.LogRecord) -> None: ...
