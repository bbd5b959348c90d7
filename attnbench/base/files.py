"""Files that are written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
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


# Flags that never follow a link that somebody put in place of our file, and never wait for a pipe.
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ADD = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

LARGEST = 2**28  # bytes of a file that is read as a whole

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
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: it replaces the file of a killed process
    try:
        with changing(path, todo):
            with suppress(FileNotFoundError):
                temporary.unlink()  # of a link, only the link itself
            with open(os.open(temporary, CREATE, 0o666), "wb") as file:
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


def appending(path: Path) -> int:
    """A descriptor of a file to read and to append to; it is created if it does not exist.

    Raises:
        OSError: it cannot be opened, or it is a link, a folder, a pipe or a device.
    """
    descriptor = os.open(path, ADD, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return descriptor


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a file that others may have changed.

    Raises:
        OSError: it cannot be read, or it is a folder, a pipe or a device.
        ValueError: it has more than ``most`` bytes, or is not UTF-8.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        if about.st_size > most:
            raise ValueError(f"larger than {most // 2**20} MiB")
        return file.read(most).decode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write(path, lambda file: file.write(text.encode()))


def read_json(path: Path, most: int = LARGEST) -> Any:
    """The value in a JSON file, or None if the file is missing or is not valid JSON."""
    try:
        return json.loads(read_text(path, most))
    except (OSError, ValueError, RecursionError):  # nested too deeply
        return None


def read_object(path: Path, most: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or holds anything else."""
    found = read_json(path, most)
    return found if isinstance(found, dict) else {}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 hashes in a folder's ``SHA256SUMS``, by file name; empty if there is no such file."""
    try:
        lines = read_text(folder / "SHA256SUMS").splitlines()
    except (OSError, ValueError):
        lines = []
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
