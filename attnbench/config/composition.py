"""From what the user typed to a checked configuration, without importing torch.

Hydra composes it from the option files; every value is checked against what its builder declares (``builders``).
"""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from hydra import compose as hydra_compose
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnbench.config import options
from attnbench.config.builders import checked_node, validated
from attnbench.config.complaints import translate
from attnbench.config.configuration import DETECTION, GROUPS, Config, coherent
from attnbench.config.hydra_state import load_option, prepared
from attnbench.config.naming import REVISION
from attnbench.config.option_files import declared, experiment_values, folder, usual_options

ROOT = {
    "seed": options.Index,
    "batch_size": options.Several,
    "resume": typing.Literal["auto", "never"],
    "debug": bool,
    "paths": dict,
}
PATHS = {"outputs": str}

Parts = tuple[DictConfig, dict[str, str]]


def compose(overrides: Sequence[str]) -> Config:
    """The configuration of a command line.

    Raises:
        ConfigError: one line with the dotted key and the nearest valid one.
    """
    offer_timm(overrides)
    with prepared():
        try:
            return _checked(*(_updated(overrides) or _parts(_composed(overrides))))
        except (HydraException, OmegaConfBaseException) as error:
            raise translate(error, overrides) from None


# Of Hydra's loader, what it has composed: many command lines take the same options and differ in values.
_OPTIONS: WeakKeyDictionary[Any, dict[tuple[str, ...], Parts]] = WeakKeyDictionary()

# Of Hydra's loader, what the options of some choices declare.
_DECLARED: WeakKeyDictionary[Any, dict[tuple[tuple[str, str], ...], dict[str, Any]]] = WeakKeyDictionary()


def _updated(overrides: Sequence[str]) -> Parts | None:
    """What Hydra composes: options once for all that take the same, then values, as Hydra sets them; six times as fast.

    None for a line that Hydra has to tell right from wrong.
    """
    if any(word.startswith(("+", "~", "hydra.")) for word in overrides):
        return None
    values = [word for word in overrides if re.match(r"[a-z][\w.]*=", word) and not _is_choice(word)]
    words = tuple(word for word in overrides if word not in values)
    composed = _OPTIONS.setdefault(GlobalHydra.instance().config_loader(), {})
    if words not in composed:
        composed[words] = _parts(_composed(words))
    cfg, choices = copy.deepcopy(composed[words])
    try:
        for value in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(cfg, value.key_or_group, value.value(), merge=True)
    except (HydraException, OmegaConfBaseException):
        return None
    return cfg, choices


def _is_choice(word: str) -> bool:
    return (folder() / word.partition("=")[0]).is_dir()


def _composed(overrides: Sequence[str]) -> DictConfig:
    return hydra_compose("train", list(overrides), return_hydra_config=True)


def node(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A node of the composed configuration, resolved but not checked, such as ``hydra.launcher``.

    Raises:
        ConfigError: an unknown key or option.
    """
    with prepared():
        try:
            cfg = _composed(overrides)
            return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.select(cfg, path), resolve=True))
        except (HydraException, OmegaConfBaseException) as error:
            raise translate(error, overrides) from None


def offer_timm(overrides: Sequence[str]) -> None:
    """Make an option of every ``backbone=timm/<name>`` that a command line asks for."""
    for override in overrides:
        key, _, values = override.partition("=")
        for name in re.findall(r"timm/([\w.\-]+)", values) if key == "backbone" else ():
            node = {"_target_": "attnbench.models.backbones.timm.timm_model", "name": name, "pretrained": False}
            ConfigStore.instance().store(name, node, group="backbone/timm")


def check(cfg: DictConfig) -> Config:
    """A composed configuration (with its ``hydra`` node) as a checked one.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range or a pair that makes no sense.
    """
    return _checked(*_parts(cfg))


def _parts(cfg: DictConfig) -> Parts:
    """A composed configuration without its ``hydra`` node, and which option was taken of each group."""
    choices = {str(k).split("@")[0].strip("/"): str(v) for k, v in cfg.hydra.runtime.choices.items()}
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(cfg, True)
    return cfg, choices


def _checked(cfg: DictConfig, choices: Mapping[str, str]) -> Config:
    raw = typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    raw.pop(REVISION, None)
    groups = [*GROUPS, *(group for group in DETECTION if group in raw)]
    tree = validated(raw, ROOT | dict.fromkeys(groups, dict), "")
    tree["paths"] = validated(raw["paths"], PATHS, "paths")
    for group in groups:
        tree[group] = checked_node(raw[group], group)
    taken = {group: choices[group] for group in (*groups, "experiment") if group in choices}
    return coherent(Config(tree, taken, **declarations(taken)))


def declarations(choices: Mapping[str, str]) -> dict[str, Any]:
    """What a configuration knows of the options it takes: ``declared``, ``experiment`` and ``usual`` of a ``Config``.

    Hydra's state must be ``prepared``.
    """
    known = _DECLARED.setdefault(GlobalHydra.instance().config_loader(), {})
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
