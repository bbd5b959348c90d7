"""Functions in C, compiled when they are first used and kept; who needs them has a way without them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

# No fused multiply-add behind our back: results are compared bit by bit with those of other programs.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off")
SECONDS = 60


class Unavailable(Exception):
    """Why there is no compiled function, in a few words."""


def load(source: Path) -> ctypes.CDLL:
    """The functions of a C file. Calls release the interpreter's lock.

    The compiled file is named by everything that went into it and written whole, so that many processes may ask at
    once and a newer source never meets an older file. It is kept in ``~/.cache/attnbench`` (``XDG_CACHE_HOME``); where
    that cannot be written it is compiled for this process alone.

    Raises:
        Unavailable: there is no compiler (``CC``, cc, gcc or clang), or it fails.
    """
    compiler = _compiler()
    made_of = [*compiler, *FLAGS, platform.machine(), *platform.libc_ver(), source.read_text(encoding="utf-8")]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so"
    try:
        if folder := _kept():
            return _loaded(compiler, source, folder / name)
        with tempfile.TemporaryDirectory(prefix="attnbench-") as passing:  # a file in use may be removed
            return _loaded(compiler, source, Path(passing) / name)
    except OSError as error:
        raise Unavailable(f"{name} cannot be made or loaded: {error}") from error


def _kept() -> Path | None:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnbench"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a home that cannot be written, or none
        return None
    return folder if os.access(folder, os.W_OK) else None


def _loaded(compiler: list[str], source: Path, path: Path) -> ctypes.CDLL:
    if not path.exists():
        _compile(compiler, source, path)
    return ctypes.CDLL(str(path))


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise Unavailable("there is no C compiler (cc, gcc or clang)")
    return [found]


def _compile(compiler: list[str], source: Path, path: Path) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        command = [*compiler, *FLAGS, str(source), "-o", temporary, "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            complaints = [line for line in done.stderr.splitlines() if "error" in line] or ["it said nothing"]
            raise Unavailable(f"{compiler[0]} fails: {complaints[0]}")
        os.replace(temporary, path)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{compiler[0]} took more than {SECONDS} s") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
