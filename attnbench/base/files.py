"""Files that are written completely or not at all."""

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
    """A file that hashes the data written to it."""

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
    """Write a file by way of a temporary file beside it: fill it, flush it to disk, rename it.

    Args:
        path: the file; it keeps its old contents until the new ones are complete.
        fill: writes the contents to the open file that it is called with.
        todo: what the user can do if writing fails.

    Returns:
        The SHA-256 of the contents in hex.

    Raises:
        StorageError: no space or no permission. The temporary file is removed, and the old contents are kept.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: it overwrites the file of a killed process
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
    """Turn an error from writing, moving or creating a file or folder into a StorageError.

    Raises:
        StorageError: no space or no permission; it names the path and what to do.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        what = f"cannot write: {_reason(error)}"
        raise StorageError(what, path, todo) from error


def make_folder(path: Path, todo: str = OUTPUTS) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises:
        StorageError: a folder cannot be created.
    """
    with changing(path, todo):
        path.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None if the file is missing or is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 hashes in a folder's ``SHA256SUMS``, by file name; empty if there is no such file."""
    path = folder / "SHA256SUMS"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write ``SHA256SUMS`` in the format of ``sha256sum -c``, completely or not at all."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if digest)
    write(folder / "SHA256SUMS", lambda file: file.write(text.encode()))


def _flush_folder(path: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The system's error message, if there is one. torch hides it behind a RuntimeError about file positions."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return _reason(error.__context__) if error.__context__ else (str(error).splitlines() or [type(error).__name__])[0]
