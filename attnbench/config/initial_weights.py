"""The weights that a run starts from (``backbone.weights``): where they are, and what they are called in its name.

They are a run's folder, the folder of a run's seeds (then the run of the same seed), or a file. In the name of the new
run, a run is called as its folder, wherever the folder of outputs is, and a file by its contents, wherever it lies.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from attnbench.base import files
from attnbench.base.errors import StorageError

RUN = re.compile(r"(?:^|.*/)runs/([^/]+/[^/]+/[^/]+-[0-9a-f]{8}(?:/seed\d+)?)")


def locate(weights: str, seed: int) -> Path:
    """The file, or the folder of the run, that a run with this seed starts from.

    Raises:
        StorageError: it does not exist.
    """
    path = Path(weights).expanduser()
    for found in (path, path / f"seed{seed}"):
        if found.is_file() or (found / "config.yaml").is_file():
            return found
    wanted = path if not path.is_dir() else path / f"seed{seed}"
    todo = "train it first, or give another run's folder, such as outputs/runs/<dataset>/<backbone>/<name>, or a file"
    raise StorageError("there is no such run or file of weights", wanted, todo)


def name(weights: str) -> str:
    """What weights are called in the name of a run that starts from them.

    ``imagenet/resnet50/se-block-1a2b3c4d`` for a run's folder, with ``/seed0`` if it is given;
    ``sha256:`` and 16 hexadecimal digits for a file; the text itself for what does not exist.
    """
    path = Path(weights).expanduser()
    if match := RUN.fullmatch(str(path)):
        return match[1]
    if path.is_file():
        return f"sha256:{digest(path)[:16]}"
    last = files.read_sums(path / "checkpoints").get("last.pt") if path.is_dir() else None
    return f"sha256:{last[:16]}" if last else weights


def digest(path: Path) -> str:
    """SHA-256 in hex of a file's contents; a file is read again only after it has changed."""
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
