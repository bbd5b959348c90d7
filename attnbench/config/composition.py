"""From what the user typed to a checked configuration, without importing torch.

Hydra composes it from configs/; every value is checked against what its builder declares (``declaration.py``). What
identifies a run, and so names its folder, is decided here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnbench.base.errors import ConfigError
from attnbench.config import options
from attnbench.config.builders import build, checked_node, unknown, validated

GROUPS = ("dataset", "backbone", "attention", "placement", "schedule", "task", "runtime")
DETECTION = ("detector",)  # groups that only task=detection has

# Data sets with boxes, and those of them with masks.
BOXES = {"digits_det", "voc", "coco"}
MASKS = {"digits_det", "coco"}

# What does not change a run's result: left out of the hash that names its folder.
NEUTRAL = {
    "seed",
    "resume",
    "debug",
    "paths",
    "dataset.root",
    "runtime.device",
    "runtime.processes",
    "runtime.workers",
    "runtime.tail",
    "runtime.graph",
    "runtime.checkpoint_minutes",
    "runtime.checkpoint_steps",
}

ROOT = {
    "seed": options.Index,
    "batch_size": options.Several,
    "resume": typing.Literal["auto", "never"],
    "debug": bool,
    "paths": dict,
}
PATHS = {"outputs": str}

Parts = tuple[DictConfig, dict[str, str]]


def folder() -> Path:
    """Where the option files lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
        tree: all values, resolved; ``tree["attention"]["kernel_size"]``.
        choices: the option taken of each group; ``choices["attention"] == "eca"``.
    """

    tree: dict[str, Any]
    choices: dict[str, str]

    @property
    def seed(self) -> int:
        """The seed of weights, data order and augmentation."""
        return int(self.tree["seed"])

    @property
    def identity(self) -> dict[str, Any]:
        """The dotted keys and values that decide a run's result, its seed apart."""
        flat = dict(flatten(self.tree))
        return {k: v for k, v in flat.items() if k not in NEUTRAL and k.split(".")[0] not in NEUTRAL}

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of a SHA-256 over ``identity``."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def group_folder(self) -> Path:
        """``<outputs>/runs/<dataset>/<backbone>/<attention>-<placement>-<hash>``, shared by the seeds."""
        c = self.choices
        name = f"{c['attention']}-{c['placement']}-{self.hash}"
        return Path(self.tree["paths"]["outputs"]) / "runs" / c["dataset"] / c["backbone"] / name

    @property
    def run_folder(self) -> Path:
        """The run's own folder: its group's folder, then ``seed<k>``."""
        return self.group_folder / f"seed{self.seed}"

    def updated(self, values: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with other options in some groups, checked again."""
        nodes = {group: checked_node(self.tree[group] | dict(new), group) for group, new in values.items()}
        return _coherent(Config(self.tree | nodes, self.choices))

    def without_attention(self) -> Config:
        """The plain network of this configuration."""
        none = {"_target_": "attnbench.models.attention.none.none"}
        return _coherent(Config(self.tree | {"attention": none}, self.choices | {"attention": "none"}))

    def build(self, group: str, *args: Any, **supplied: Any) -> Any:
        """Call the builder of a group with its options."""
        return build(self.tree[group], group, *args, **supplied)


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


def deviations(config: Config) -> dict[str, Any]:
    """The keys and values in which a configuration differs from the options that it takes, the attention's first."""
    usual = dict(flatten(_usual(config.choices)))
    differ = {key: value for key, value in config.identity.items() if not _is_usual(value, usual.get(key, value))}
    return dict(sorted(differ.items(), key=lambda item: not item[0].startswith(("attention.", "placement."))))


def _is_usual(value: Any, usual: Any) -> bool:
    """Whether a value is what its option file says; one that follows from others is."""
    return value == usual or "${" in str(usual)


def _usual(choices: Mapping[str, str]) -> dict[str, Any]:
    """What the option files say, the experiment's last: read, not composed, as that takes a run's start longer."""
    tree: dict[str, Any] = {}
    groups = (*GROUPS, *DETECTION, "experiment")
    for name in ("train", *(f"{group}/{choices[group]}" for group in groups if group in choices)):
        for key, value in _read_option(name).items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return tree


def _read_option(name: str) -> dict[str, Any]:
    """What an option file sets, from the root of the configuration on."""
    path = folder() / f"{name}.yaml"
    if not path.is_file():  # an option made for a command line, or no experiment
        return {}
    text = path.read_text(encoding="utf-8")
    loaded: dict[str, Any] = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    group, _, option = name.partition("/")
    return {group: loaded} if option and not text.startswith("# @package _global_") else loaded


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
    groups = [*GROUPS, *(group for group in DETECTION if group in raw)]
    tree = validated(raw, ROOT | dict.fromkeys(groups, dict), "")
    tree["paths"] = validated(raw["paths"], PATHS, "paths")
    for group in groups:
        tree[group] = checked_node(raw[group], group)
    return _coherent(Config(tree, {k: choices[k] for k in (*groups, "experiment") if k in choices}))


def _coherent(config: Config) -> Config:
    """Refuse pairs that make no sense; without attention, every placement is none."""
    _refuse_other_task(config)
    if config.choices["attention"] == "none":
        tree = config.tree | {"placement": _none_placement()}
        return Config(tree, config.choices | {"placement": "none"})
    if not config.tree["placement"]["roles"]:
        what = f"attention={config.choices['attention']} has nowhere to stand"
        raise ConfigError(what, "placement.roles", "use placement=block or layer")
    return config


def _refuse_other_task(config: Config) -> None:
    """Refuse a data set or a detector that the task has no use for.

    A data set of one's own, behind another option file, is taken for what the task needs.
    """
    choices, detects = config.choices, config.choices.get("task") == "detection"
    dataset, known = choices.get("dataset", ""), names("dataset")
    if detects != ("detector" in config.tree):
        what, todo = ("task=detection has no detector", f"use one of {', '.join(names('detector'))}")
        if not detects:
            what, todo = f"detector={choices['detector']} has no task that detects", "add task=detection"
        raise ConfigError(what, "detector", todo)
    if dataset in known and detects != (dataset in BOXES):
        fitting = sorted(BOXES if detects else set(known) - BOXES)
        what = f"dataset={dataset} is not for task={choices['task']}"
        raise ConfigError(what, "dataset", f"use {', '.join(fitting)}")
    if detects and choices["detector"].startswith("mask_") and dataset in BOXES - MASKS:
        raise ConfigError(f"dataset={dataset} has no masks", "detector", f"use {', '.join(sorted(MASKS))}")


@cache
def _none_placement() -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(folder() / "placement" / "none.yaml"))
    return typing.cast(dict[str, Any], loaded)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values of a nested dictionary; lists are leaves."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def translate(error: BaseException, overrides: Sequence[str]) -> ConfigError:
    """Hydra's and OmegaConf's complaints in our one line."""
    text = str(error)
    cause = str(error.__cause__ or "")
    if match := re.search(r"full_key: (\S+)", text + "\n" + cause):
        return _unknown_key(match[1], overrides)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], overrides)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, option = match[1].strip("/").rpartition("/")
        close = get_close_matches(option, names(group), 1, 0.4)
        hint = f"did you mean {group}={close[0]}? " if close else ""
        return ConfigError(f"{option} is no option", group, f"{hint}there are {', '.join(names(group))}")
    return ConfigError(text.splitlines()[0], "command line", "write key=value; quote values with spaces or commas")


def _unknown_key(key: str, overrides: Sequence[str]) -> ConfigError:
    """Which options have the key; if none has, the nearest key that there is without the override at fault."""
    parent, _, last = key.rpartition(".")
    if parent and (there := _having(parent.replace(".", "/"), last)):
        return ConfigError("unknown key", key, f"it is a key of {parent.replace('.', '/')}={', '.join(there)}")
    if key in DETECTION:
        return ConfigError("unknown key", key, "add task=detection")
    rest = [o for o in overrides if not f"{o.lstrip('+~').split('=')[0].split('@')[0]}.".startswith(f"{key}.")]
    try:
        with prepared():
            cfg = hydra_compose("train", rest, return_hydra_config=key.startswith("hydra."))
            tree = OmegaConf.to_container(cfg, resolve=False)
    except (HydraException, OmegaConfBaseException):
        return unknown(key, [])
    keys = [k for k, _ in flatten(typing.cast(dict[str, Any], tree)) if not k.endswith("_target_")]
    if not parent:
        return unknown(key, [*GROUPS, "experiment", *keys])
    siblings = [k.removeprefix(f"{parent}.") for k in keys if k.startswith(f"{parent}.")]
    return unknown(key, siblings)


def _having(group: str, key: str) -> list[str]:
    """The options of a group that have a key."""
    top = group.partition("/")[0]
    return [option for option in names(group) if key in _read_option(f"{group}/{option}").get(top, {})]


def names(group: str) -> list[str]:
    """The options of a group, sorted."""
    return sorted(str(p.relative_to(folder() / group))[:-5] for p in (folder() / group).rglob("*.yaml"))


@contextmanager
def prepared() -> Iterator[None]:
    """Hydra's global state: the running command's own, or one that all compositions inside share."""
    if GlobalHydra.instance().is_initialized():
        _remember_options()
        yield
        return
    with initialize_config_dir(str(folder()), version_base="1.3"):
        _remember_options()
        yield


def _remember_options() -> None:
    repository = typing.cast(Any, GlobalHydra.instance().config_loader()).repository
    if not hasattr(repository.load_config, "read"):
        repository.load_config = _remembered(repository.load_config)


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra's reading of an option file, done once: most of the time of many compositions is spent on it."""
    read: dict[str, Any] = {}

    def remembered(config_path: str) -> Any:
        if read.get(config_path) is None:
            read[config_path] = load(config_path=config_path)
        return copy.deepcopy(read[config_path])

    remembered.read = read  # type: ignore[attr-defined]
    return remembered
