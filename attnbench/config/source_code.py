"""Hashes of the source of what a configuration trains, to notice that a run goes on under changed code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attnbench.base.moved import present
from attnbench.config.annotations import Place, is_trusted, source
from attnbench.config.naming import TARGET, flatten, is_ours

OURS = "attnbench"


def digests(tree: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256, in 16 hexadecimal digits, of attnbench's source and of each module of a user's that a run uses.

    These are the modules of its builders and what they import from packages that ``ATTNBENCH_TRUST`` names. Nothing is
    imported.

    Args:
        tree: a configuration's values.
    """
    return {OURS: _of_attnbench(), **own(tree)}


def own(tree: Mapping[str, Any]) -> dict[str, str]:
    """The part of ``digests`` that is the user's own, by module."""
    return {module: _hash(path.read_bytes()) for module, path in sorted(_modules(tree).items()) if path.is_file()}


def _modules(tree: Mapping[str, Any]) -> dict[str, Path]:
    """A user's modules that the builders of a configuration consist of, with their files."""
    targets = (present(str(value)) for key, value in flatten(tree) if key.rpartition(".")[2] == TARGET)
    waiting = [target.rpartition(".")[0] for target in targets if not is_ours(target)]
    found: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        if module in found or is_ours(f"{module}.") or not is_trusted(module):
            continue
        read = source(module)
        if read.path is not None:
            found[module] = read.path
            waiting += [module.rpartition(".")[0], *_imported(read.names)]
    return found


def _imported(names: Mapping[str, Any]) -> Iterator[str]:
    """The modules that a module imports; what is imported from a package may be a module or a name in one."""
    for place in names.values():
        if isinstance(place, Place):
            yield place.module
            yield ".".join(place)


def _of_attnbench() -> str:
    package = Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*.py") if "configs" not in path.parts)
    return _hash(b"".join(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() for path in files))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
