"""What of a configuration Hydra itself acts on, checked before it does.

Hydra calls what the ``hydra`` node of a configuration names: callbacks, a sweeper, a launcher, log handlers. It also
writes files and sets environment variables. An option file of somebody else can set this node, so it is compared with
attnbench's own values on the resolved configuration. Classes of packages that ``ATTNBENCH_TRUST`` names may be added.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from attnbench.base.errors import ConfigError
from attnbench.config.annotations import is_trusted, source
from attnbench.config.naming import TARGET, override_key
from attnbench.config.option_files import folder

NO_LOG = {"version": 1, "root": None, "disable_existing_loggers": False}
OUTPUTS = "attnbench makes the folders of runs; choose another place with paths.outputs"
SILENT = "attnbench writes a run's log to its folder; leave Hydra's logging off"

# The nodes below ``hydra`` that have one value, and what to do instead of another.
PINNED: dict[str, tuple[Any, str]] = {
    "run.dir": (".", OUTPUTS),
    "output_subdir": (None, OUTPUTS),
    "job.chdir": (False, OUTPUTS),
    "job.env_set": ({}, "set variables in the shell"),
    "job.env_copy": ([], "set variables in the shell"),
    "job_logging": (NO_LOG, SILENT),
    "hydra_logging": (NO_LOG, SILENT),
}
CALLBACK = {TARGET: "attnbench.launch.sweep.Sweep"}
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

# Options of launchers that name a command, a folder or another machine: only the command line sets them.
OWN_WORDS = {"setup", "additional_parameters", "submitit_folder", "address"}
PLAIN = re.compile(r"[\w.:,@%/+\-=\[\]]*")  # a text without meaning for a shell

TODO = "remove it from the option file; or, for your own class, name its package in ATTNBENCH_TRUST"


def pin(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Check what Hydra acts on, and replace it by the values that were checked.

    Args:
        cfg: a configuration that Hydra has just composed.
        overrides: its command line.

    Raises:
        ConfigError: a value is not attnbench's, and the user did not trust or write it.
    """
    if cfg._get_node("hydra")._is_interpolation():  # type: ignore[union-attr]
        raise ConfigError("an option file replaces this node", "hydra", "remove it from the option file")
    own = {key: wanted for key, (wanted, _) in PINNED.items()}
    own |= {"sweep.dir": str(OmegaConf.select(cfg, "paths.outputs")), "sweep.subdir": "."}
    for key, wanted in own.items():
        if _plain(cfg, key) != wanted:
            todo = PINNED.get(key, (None, OUTPUTS))[1]
            raise ConfigError("this cannot be set", f"hydra.{key}{_within(cfg, key, wanted)}", todo)
    own["callbacks"] = _callbacks(_plain(cfg, "callbacks"))
    own["sweeper"] = _sweeper(_plain(cfg, "sweeper"))
    own["launcher"] = _launcher(_plain(cfg, "launcher"), overrides)
    _refuse_control_characters(cfg)
    for key, value in own.items():
        OmegaConf.update(cfg, f"hydra.{key}", value, merge=False)


def _plain(cfg: DictConfig, key: str) -> Any:
    """A node below ``hydra``, resolved."""
    value = OmegaConf.select(cfg, f"hydra.{key}")
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _within(cfg: DictConfig, key: str, wanted: Any) -> str:
    """The first key inside a node that differs from the wanted one, with a dot; empty if the node itself does."""
    found = _plain(cfg, key)
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return ""
    differ = [name for name in {**wanted, **found} if found.get(name, ...) != wanted.get(name, ...)]
    return f".{differ[0]}" if differ else ""


def _callbacks(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or found.get("sweep") != CALLBACK:
        raise ConfigError("attnbench's own callback cannot be replaced", "hydra.callbacks.sweep", TODO)
    for name, node in found.items():
        if name != "sweep":
            _refuse_foreign(node, f"hydra.callbacks.{name}")
    return found


def _sweeper(found: Any) -> Any:
    if isinstance(found, dict) and found.get(TARGET) == SWEEPER:
        return found
    _refuse_foreign(found, "hydra.sweeper")
    return found


def _launcher(found: Any, overrides: Sequence[str]) -> Any:
    """The launcher's node; what an option file sets of it must be a number or a plain word."""
    target = found.get(TARGET) if isinstance(found, dict) else None
    if found == {TARGET: LAUNCHER}:
        return found
    ours = _launchers().get(str(target))
    if ours is None:
        _refuse_foreign(found, "hydra.launcher")
        return found
    given = {override_key(one) for one in overrides}
    for key, value in found.items():
        where = f"hydra.launcher.{key}"
        typed = any(one == where or one.startswith(f"{where}.") for one in given) or "hydra.launcher" in given
        if key in ours and not typed and not _harmless(key, value, ours[key]):
            raise ConfigError("an option file cannot set this", where, f"write {where}=... on the command line")
    return found


def _harmless(key: str, value: Any, usual: Any) -> bool:
    if value == usual or value is None or (key == "submitit_folder" and str(value).endswith("/.submitit/%j")):
        return True
    return key not in OWN_WORDS and (isinstance(value, (bool, int, float)) or bool(PLAIN.fullmatch(str(value))))


@cache
def _launchers() -> dict[str, dict[str, Any]]:
    """The options of attnbench's launchers, by their ``_target_``."""
    files = (folder() / "hydra" / "launcher").glob("*.yaml")
    nodes = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in files)
    return {node[TARGET]: node for node in nodes}


def _refuse_foreign(node: Any, where: str) -> None:
    """Refuse a node that calls anything but classes which trusted packages of the user define.

    Raises:
        ConfigError: names the class and the key.
    """
    named = list(_targets(node))
    for target in named:
        if not _is_own(str(target)):
            raise ConfigError(f"{target} may not be called", where, TODO)
    if not named:
        raise ConfigError("this is no class to call", where, TODO)


def _is_own(target: str) -> bool:
    """Whether a class is defined, not only imported, in a module of a package that the user trusts."""
    module, _, name = target.rpartition(".")
    if not module or module.split(".")[0] == "attnbench" or not is_trusted(module):
        return False
    return any(isinstance(line, ast.ClassDef) and line.name == name for line in source(module).body)


def _targets(node: Any) -> Iterator[Any]:
    """All values of ``_target_`` in a node, at any depth."""
    if isinstance(node, Mapping):
        yield from ([node[TARGET]] if TARGET in node else [])
        for one in node.values():
            yield from _targets(one)
    elif isinstance(node, list):
        for one in node:
            yield from _targets(one)


def _refuse_control_characters(cfg: DictConfig) -> None:
    """Refuse help texts that would write escape codes to the terminal."""
    for key in ("help", "hydra_help"):
        node = OmegaConf.to_container(OmegaConf.select(cfg, f"hydra.{key}"), resolve=False)
        for text in node.values() if isinstance(node, dict) else ():
            if any(unicodedata.category(c) == "Cc" and c != "\n" for c in str(text)):
                raise ConfigError("this text has control characters", f"hydra.{key}", "remove it from the option file")
