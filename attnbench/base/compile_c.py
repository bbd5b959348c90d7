"""Functions in C, compiled at first use and cached. Every caller also has an implementation without them."""

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

# -ffp-contract=off: no fused multiply-add, because results are compared bit by bit with those of other programs.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-ffp-contract=off")
PARALLEL = ("-fopenmp",)
SECONDS = 60


class Unavailable(Exception):
    """There is no compiled function; the message is a short reason."""


def load(source: Path, parallel: bool = False) -> ctypes.CDLL:
    """Compile and load the functions of a C file. Calls release Python's global lock.

    With ``parallel``, OpenMP's pragmas hold if the process has GNU's OpenMP loaded, as it has with torch on Linux. The
    functions then share its threads. Otherwise they use one thread.

    The name of the compiled file contains a hash of its source with the headers beside it, compiler and flags, so a
    changed source is compiled again. The file is written atomically, so many processes may compile at the same time.
    It is cached in ``~/.cache/attnbench`` (or under ``XDG_CACHE_HOME``); if that folder is not writable, it is compiled
    for this process only.

    Raises:
        Unavailable: there is no compiler (``CC``, cc, gcc or clang), or it fails.
    """
    compiler = _compiler()
    flags = (*FLAGS, *(PARALLEL if parallel and hasattr(ctypes.CDLL(None), "GOMP_parallel") else ()))
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    made_of = [*compiler, *flags, platform.machine(), *platform.libc_ver(), *texts]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so"
    try:
        if folder := _kept():
            return _loaded(compiler, flags, source, folder / name)
        with tempfile.TemporaryDirectory(prefix="attnbench-") as temporary:  # a loaded file may be removed
            return _loaded(compiler, flags, source, Path(temporary) / name)
    except OSError as error:
        raise Unavailable(f"{name} cannot be made or loaded: {error}") from error


def _kept() -> Path | None:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnbench"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # the home folder is missing or not writable
        return None
    return folder if os.access(folder, os.W_OK) else None


def _loaded(compiler: list[str], flags: tuple[str, ...], source: Path, path: Path) -> ctypes.CDLL:
    if not path.exists():
        _compile(compiler, flags, source, path)
    return ctypes.CDLL(str(path))


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise Unavailable("there is no C compiler (cc, gcc or clang)")
    return [found]


def _compile(compiler: list[str], flags: tuple[str, ...], source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as temporary:
        made, linked = f"{temporary}/{source.stem}.o", f"{temporary}/{path.name}"
        # Linked by itself, without -fopenmp, which would add a second OpenMP with threads of its own.
        _call([*compiler, *flags, "-c", str(source), "-o", made])
        _call([*compiler, "-shared", made, "-o", linked, "-ldl", "-lm"])
        os.replace(linked, path)


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {SECONDS} s") from None
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if "error" in line] or ["no error message"]
        raise Unavailable(f"{command[0]} fails: {complaints[0]}")
