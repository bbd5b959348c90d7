"""Composes and checks the configuration of a command line, without importing torch.

Hydra composes it from the option files. Then every value is checked against the types that its builder declares
(``builders``).
"""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnbench.base.errors import ConfigError, listed
from attnbench.config import options
from attnbench.config.builders import checked_node, validated
from attnbench.config.complaints import translate, unplaced
from attnbench.config.configuration import DETECTION, GROUPS, Config, coherent
from attnbench.config.hydra_state import composed, load_option, loader, prepared
from attnbench.config.naming import REVISION
from attnbench.config.option_files import declared, experiment_values, is_group, shipped_names, usual_options

ROOT = {
    "seed": options.Index,
    "batch_size": options.Several,
    "resume": typing.Literal["auto", "never", "extend"],
    "debug": bool,
    "paths": dict,
}
PATHS = {"outputs": str}

Parts = tuple[DictConfig, dict[str, str]]


def compose(overrides: Sequence[str]) -> Config:
    """The configuration of a command line.

    Raises:
        ConfigError: an invalid key or value; the line has the dotted key and the most similar valid one.
    """
    with prepared():
        try:
            return _checked(*(_updated(overrides) or _parts(composed(overrides))))
        except (HydraException, OmegaConfBaseException) as error:
            raise translate(error, overrides) from None


# A cache of compositions for each of Hydra's loaders: many command lines take the same options with other values.
_OPTIONS: WeakKeyDictionary[Any, dict[tuple[str, ...], Parts]] = WeakKeyDictionary()

# A cache of the declared values for each of Hydra's loaders, by the options taken.
_DECLARED: WeakKeyDictionary[Any, dict[tuple[tuple[str, str], ...], dict[str, Any]]] = WeakKeyDictionary()


def _updated(overrides: Sequence[str]) -> Parts | None:
    """The composition that Hydra gives, six times as fast: cached options, with the values set as Hydra sets them.

    None for a command line that only Hydra can compose or refuse.
    """
    if any(override.startswith(("+", "~", "hydra.")) for override in overrides):
        return None
    values = [override for override in overrides if re.match(r"[a-z][\w.]*=", override) and not _is_choice(override)]
    others = tuple(override for override in overrides if override not in values)
    known = _OPTIONS.setdefault(loader(), {})
    if others not in known:
        known[others] = _parts(composed(others))
    cfg, choices = copy.deepcopy(known[others])
    try:
        for value in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(cfg, value.key_or_group, value.value(), merge=True)
    except (HydraException, OmegaConfBaseException):
        return None
    return cfg, choices


def _is_choice(override: str) -> bool:
    return is_group(override.partition("=")[0])


def node(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A node of the composed configuration, such as ``hydra.launcher``, resolved but not checked.

    Raises:
        ConfigError: an unknown key or option.
    """
    with prepared():
        try:
            cfg = composed(overrides)
            return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.select(cfg, path), resolve=True))
        except (HydraException, OmegaConfBaseException) as error:
            raise translate(error, overrides) from None


def check(cfg: DictConfig) -> Config:
    """Check a composed configuration, which includes its ``hydra`` node.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, or options that do not fit together.
    """
    return _checked(*_parts(cfg))


def _parts(cfg: DictConfig) -> Parts:
    """A composed configuration without its ``hydra`` node, and the option taken from each group."""
    choices = {str(k).split("@")[0].strip("/"): str(v) for k, v in cfg.hydra.runtime.choices.items()}
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(cfg, True)
    return cfg, choices


def _checked(cfg: DictConfig, choices: Mapping[str, str]) -> Config:
    raw = typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    raw.pop(REVISION, None)
    groups = [*GROUPS, *(group for group in DETECTION if group in raw)]
    if gone := [key for key in ROOT if key not in raw]:
        raise ConfigError("this key cannot be removed", gone[0], f"write {gone[0]}=... instead")
    if lacking := [group for group in groups if not isinstance(raw.get(group), dict)]:
        if lacking == ["placement"]:
            raise unplaced()
        names = listed(sorted(shipped_names(lacking[0])))
        raise ConfigError("no option is taken", lacking[0], f"write {lacking[0]}=...; there are {names}")
    tree = validated(raw, ROOT | dict.fromkeys(groups, dict), "")
    tree["paths"] = validated(raw["paths"], PATHS, "paths")
    for group in groups:
        tree[group] = checked_node(raw[group], group)
    taken = {group: choices[group] for group in (*groups, "experiment") if group in choices}
    return coherent(Config(tree, taken, **declarations(taken)))


def declarations(choices: Mapping[str, str]) -> dict[str, Any]:
    """The values that the options taken declare: ``declared``, ``experiment`` and ``usual`` of a ``Config``.

    Inside ``prepared()``, they are read once.
    """
    known = _DECLARED.setdefault(loader(), {})
    key = tuple(sorted(choices.items()))
    if key not in known:
        known[key] = _declarations(choices)
    return known[key]


def _declarations(choices: Mapping[str, str]) -> dict[str, Any]:
    taken = {group: option for group, option in choices.items() if group != "experiment"}
    return {
        "declared": declared(load_option, taken),
        "experiment": experiment_values(load_option, choices.get("experiment")),
        "usual": usual_options(load_option),
    }
