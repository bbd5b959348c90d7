"""Translates the errors of Hydra and OmegaConf into one line with the wrong key and the most similar valid one."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attnbench.base.errors import ConfigError
from attnbench.config.builders import unknown
from attnbench.config.configuration import DETECTION, GROUPS
from attnbench.config.hydra_state import composed, load_option, prepared
from attnbench.config.naming import flatten, override_key
from attnbench.config.option_files import declared, names
from attnbench.config.renamed import present_key, present_option


def translate(error: BaseException, overrides: Sequence[str]) -> ConfigError:
    """Translate an error of Hydra or OmegaConf into a ConfigError of one line."""
    text = str(error)
    cause = str(error.__cause__ or "")
    if isinstance(error, MissingMandatoryValue) and (match := re.search(r"full_key: (\S+)", text)):
        return ConfigError(f"{match[1]} is not set", match[1], f"write {match[1]}=...")
    if match := re.search(r"full_key: (\S+)", text + "\n" + cause):
        return _unknown_key(match[1], overrides)
    if match := re.search(r"Could not override '([^']+)'", text):
        if match[1] == "placement":
            return unplaced()
        return _unknown_key(match[1], overrides)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, option = match[1].strip("/").rpartition("/")
        if (now := present_option(group, option)) != option:
            return ConfigError(f"{group}={option} was renamed", group, f"it is {group}={now} now")
        close = get_close_matches(option, names(group), 1, 0.4)
        hint = f"did you mean {group}={close[0]}? " if close else ""
        return ConfigError(f"{option} is not an option", group, f"{hint}there are {', '.join(names(group))}")
    return ConfigError(text.splitlines()[0], "command line", "write key=value; quote values with spaces or commas")


def unplaced() -> ConfigError:
    """The error for an attention whose option file brings no placement."""
    todo = "add this to the option file: defaults: [/placement@_global_.placement: block]"
    return ConfigError("the option of this attention brings no placement", "attention", todo)


def _unknown_key(key: str, overrides: Sequence[str]) -> ConfigError:
    """The error for an unknown key: it names the options that have this key or else the most similar existing key."""
    parent, _, last = key.rpartition(".")
    if (now := present_key(key)) != key:
        return ConfigError("this key was renamed", key, f"it is {now} now")
    if parent and (there := _having(parent, last)):
        return ConfigError("unknown key", key, f"it is a key of {parent.replace('.', '/')}={', '.join(there)}")
    if key in DETECTION:
        return ConfigError("unknown key", key, "add task=detection")
    given = [o for o in overrides if "=" in o or o.startswith("~")]
    rest = [o for o in given if not o.startswith("-") and not f"{override_key(o)}.".startswith(f"{key}.")]
    try:
        with prepared():
            cfg = composed(rest)
            shown = [str(name) for name in cfg if name != "hydra" or key.startswith("hydra.")]
            tree = OmegaConf.to_container(OmegaConf.masked_copy(cfg, shown), resolve=False)
    except (ConfigError, HydraException, OmegaConfBaseException):
        return unknown(key, [])
    keys = [k for k, _ in flatten(typing.cast(dict[str, Any], tree)) if not k.endswith("_target_")]
    if not parent:
        return unknown(key, [*GROUPS, "experiment", *keys])
    siblings = [k.removeprefix(f"{parent}.") for k in keys if k.startswith(f"{parent}.")]
    return unknown(key, siblings)


def _having(parent: str, key: str) -> list[str]:
    """The options of a group that have this key."""
    group = parent.replace(".", "/")
    with prepared():
        return [option for option in names(group) if f"{parent}.{key}" in declared(load_option, {group: option})]
