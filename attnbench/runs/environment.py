"""What made a run: versions, device, commit and source code, for env.json; and whether the code has changed since."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench import __version__
from attnbench.base import files, secrets
from attnbench.base.errors import listed
from attnbench.config import source_code
from attnbench.config.configuration import Config

KEPT = ("attnbench", "commit", "source", "torch", "device")  # of an earlier start, when a run goes on


def environment(config: Config) -> dict[str, Any]:
    """The versions, device, commit and hashes of source code that make a result."""
    return {**machine(), "source": source_code.digests(config.tree), "command": secrets.redacted_words(sys.argv)}


def machine() -> dict[str, Any]:
    """The versions, device and commit that make a measurement."""
    import torch  # not at the top: a finished run is skipped without it

    commit = _commit(Path(__file__).parent)
    return {
        "attnbench": __version__,
        "commit": commit,
        "dirty": commit.endswith("-dirty") if commit else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def continued(now: dict[str, Any], run: Path) -> tuple[dict[str, Any], str]:
    """The environment of a run that goes on, with those of its earlier starts; and a line if the code has changed."""
    found = files.read_json(run / "env.json")
    before = found if isinstance(found, dict) else {}
    changed = _changed(before, now)
    if not changed:
        earlier = before.get("earlier")
        return (now | {"earlier": earlier} if earlier else now), ""
    earlier = [*_list(before.get("earlier")), {key: before.get(key) for key in KEPT}]
    todo = "the result comes from both; resume=never trains it anew"
    return now | {"earlier": earlier}, f"the code has changed since this run began: {changed}; {todo}"


def changed_since(config: Config, run: Path) -> str:
    """A line about a user's own modules that have changed since a run was trained; "" if none has."""
    own = source_code.own(config.tree)
    found = files.read_json(run / "env.json") if own else None
    then = found.get("source") if isinstance(found, dict) else None
    if not isinstance(then, dict):
        return ""
    differ = [module for module, digest in own.items() if then.get(module, digest) != digest]
    if not differ:
        return ""
    return f"{listed(differ)} has changed since this run was trained ({run}); resume=never trains it anew"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the code of two starts, in words; without hashes of source, the commits are compared."""
    then, here = before.get("source"), now["source"]
    if isinstance(then, dict):
        return listed(name for name in here if then.get(name) != here[name])
    same = not before or before.get("commit") == now["commit"]
    return "" if same else f"commit {before.get('commit')} then, {now['commit']} now"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _processor() -> str:
    """The processor's name; on Linux from /proc/cpuinfo, which Python's ``platform`` does not read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"


def _commit(folder: Path) -> str | None:
    """The commit of a folder's checkout, marked ``-dirty`` if there are local changes; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
