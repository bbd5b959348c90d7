"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from attnbench.base.errors import StorageError


class _Hashing(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)


OUTPUTS = "make space or choose paths.outputs"


def write(path: Path, fill: Callable[[IO[bytes]], object], todo: str = OUTPUTS) -> str:
    """Write a file through a temporary neighbour: fill, flush to disk, rename.

    Args:
        path: the file; it keeps its old contents until the new ones are complete.
        fill: writes the contents to the open file it is given.
        todo: what a user can do if it fails.

    Returns:
        The SHA-256 of the contents, in hexadecimal digits.

    Raises:
        StorageError: no space, no permission; the temporary file is gone and the old contents are there.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is written over
    try:
        with changing(path, todo):
            with open(temporary, "wb") as file:
                hashing = _Hashing(file)
                fill(hashing)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
        return hashing.digest.hexdigest()
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def changing(path: Path, todo: str = OUTPUTS) -> Iterator[None]:
    """Say what keeps a file or folder from being written, moved or made, and what to do.

    Raises:
        StorageError: no space, no permission.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        what = f"cannot write: {_reason(error)}"
        raise StorageError(what, path, todo) from error


def make_folder(path: Path, todo: str = OUTPUTS) -> None:
    """Make a folder and those above it, if it is not there.

    Raises:
        StorageError: it cannot be made.
    """
    with changing(path, todo):
        path.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None where there is no file or it cannot be read as JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of files by name, as ``SHA256SUMS`` in a folder lists them; empty if it is not there."""
    path = folder / "SHA256SUMS"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write ``SHA256SUMS`` as ``sha256sum -c`` reads it, whole or not at all."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if digest)
    write(folder / "SHA256SUMS", lambda file: file.write(text.encode()))


def _flush_folder(path: Path) -> None:
    """Make the rename itself last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """What the system said, if it said something: torch hides it behind a RuntimeError about positions."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return _reason(error.__context__) if error.__context__ else (str(error).splitlines() or [type(error).__name__])[0]
