"""A checked configuration: its values, the options that it takes, and the folder of its run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from attnbench.base import secrets
from attnbench.base.errors import ConfigError
from attnbench.config import initial_weights, naming
from attnbench.config.builders import build, checked_node
from attnbench.config.naming import TARGET
from attnbench.config.option_files import folder, is_shipped, names, resolved, shipped_names
from attnbench.config.renamed import option_names

GROUPS = ("dataset", "backbone", "attention", "placement", "schedule", "task", "runtime")
DETECTION = ("detector",)  # groups that only task=detection has

# Data sets with boxes, and the ones of them that also have masks.
BOXES = {"digits_det", "voc", "coco"}
MASKS = {"digits_det", "coco"}

NAMED_BY_FOLDER = {"folder"}  # data sets that get the name of their folder, unless dataset.name is set

WEIGHTS = "backbone.weights"

FORMAT = 2  # of config.yaml and of the configuration in exported weights; release 0.1.0 wrote no number


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
        tree: all values, resolved; for example ``tree["attention"]["kernel_size"]``.
        choices: the option taken from each group; for example ``choices["attention"] == "eca"``.
        declared: the values that these options declare, by dotted key; interpolations are not resolved.
        experiment: the values that the experiment sets, by dotted key.
        usual: the default option of each group.
        revised: the options' revisions above 1, by group; None for those that the option files declare now.
        named: the recorded hash of a run whose options have been revised since; it can no longer be computed.
        weights: what the initial weights are called in the run's name (see ``initial_weights``); empty without any.
    """

    tree: dict[str, Any]
    choices: dict[str, str]
    declared: Mapping[str, Any] = field(default_factory=dict)
    experiment: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, str] = field(default_factory=dict)
    revised: Mapping[str, int] | None = None
    named: str | None = None
    weights: str = ""

    @property
    def seed(self) -> int:
        """The seed of the weights, batches and augmentation."""
        return int(self.tree["seed"])

    @property
    def values(self) -> dict[str, Any]:
        """The dotted keys and values that decide a run's result, except its seed."""
        values = naming.deciding(self.tree, self.declared)
        return values | {WEIGHTS: self.weights} if self.weights else values

    @property
    def identity(self) -> dict[str, Any]:
        """The options taken and ``values``; checkpoints store them, to detect a checkpoint of another run."""
        return {**self._options, **self.values}

    @cached_property
    def deviations(self) -> dict[str, Any]:
        """The values that differ from those that the options declare, by dotted key; part of the run's name."""
        return naming.deviating(self.values, resolved(self.declared, self.tree)) | self.removed

    @property
    def changes(self) -> dict[str, Any]:
        """The values that differ from the options and the experiment, for display; the attention's come first."""
        changed = (
            naming.deviating(self.values, resolved({**self.declared, **self.experiment}, self.tree)) | self.removed
        )
        return dict(sorted(changed.items(), key=lambda item: not item[0].startswith(("attention.", "placement."))))

    @property
    def removed(self) -> dict[str, str]:
        """The declared keys that a command line removed (``~attention.tie``), with a mark as their value."""
        return naming.removed(self.tree, self.declared)

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of each option that has been revised, by group."""
        return dict(naming.revisions(self.declared) if self.revised is None else self.revised)

    @cached_property
    def hash(self) -> str:
        """Eight hexadecimal digits computed from options, deviations and revisions; see ``naming``."""
        return self.named or naming.hash8(self._options, self.deviations, self.revisions, self.usual)

    @property
    def _options(self) -> dict[str, str]:
        return {group: option for group, option in self.choices.items() if group in self.tree}

    @property
    def dataset_name(self) -> str:
        """The name of the data set: ``dataset.name`` if it is set, else its option."""
        return str(self.tree["dataset"].get("name") or self.choices["dataset"])

    @property
    def group_folder(self) -> Path:
        """``<outputs>/runs/<dataset>/<backbone>/<attention>-<placement>-<hash>``, which all seeds share."""
        return next(self._folders(self.hash))

    @property
    def group_folders(self) -> list[Path]:
        """The group's folder, and the folders of runs that were made under former names."""
        former = [naming.first_release_hash(self.tree, self.choices, self.deviations, self.revisions, self.usual)]
        if self.weights:  # before 0.2, detectors only, and the name had the path as it was typed
            typed = self.deviations | {WEIGHTS: self.tree["backbone"]["weights"]}
            former.insert(0, naming.hash8(self._options, typed, self.revisions, self.usual))
        if foreign := [group for group, option in self._options.items() if not is_shipped(group, option)]:
            # before 0.2, what an option file on hydra.searchpath declares was not known
            known = {key: value for key, value in self.declared.items() if key.partition(".")[0] not in foreign}
            unknown = replace(self, declared=known)
            former.append(naming.hash8(self._options, unknown.deviations, unknown.revisions, self.usual))
        return [*self._folders(self.hash), *(path for digest in former if digest for path in self._folders(digest))]

    @property
    def run_folder(self) -> Path:
        """The run's folder. If only a folder under a former name exists, it is that one."""
        folders = [group / f"seed{self.seed}" for group in self.group_folders]
        return next((path for path in folders if path.is_dir()), folders[0])

    def _folders(self, digest: str) -> Iterator[Path]:
        """The group's folders under all names that its options have had, the present ones first."""
        runs = Path(self.tree["paths"]["outputs"]) / "runs"
        had = [option_names(group, self.choices[group]) for group in ("dataset", "backbone", "attention", "placement")]
        if self.tree["dataset"].get("name"):
            had[0] = [self.dataset_name]
        for dataset, backbone, attention, placement in itertools.product(*had):
            yield runs / dataset / backbone / f"{attention}-{placement}-{digest}"

    def record(self) -> dict[str, Any]:
        """The configuration for config.yaml and exported weights: options and values, without secrets.

        A builder is included only if it is not the one of an option that comes with attnbench.
        """
        revised: dict[str, Any] = {"revisions": self.revisions} if self.revisions else {}
        revised |= {"removed": list(self.removed)} if self.removed else {}
        revised |= {"weights": self.weights} if self.weights else {}
        values = {key: self._written(key, value) for key, value in self.tree.items()}
        made = {"format": FORMAT, "hash": self.hash, "choices": dict(self.choices), **revised, **values}
        hidden: dict[str, Any] = secrets.redacted(made)
        return hidden

    def _written(self, key: str, value: Any) -> Any:
        known = is_shipped(key, self.choices.get(key, "")) and f"{key}.{TARGET}" not in self.deviations
        return (
            {name: one for name, one in value.items() if name != TARGET} if known and isinstance(value, dict) else value
        )

    def updated(self, values: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with other values in some groups, checked again.

        Raises:
            ConfigError: an unknown key, a wrong type, a value out of range, or options that do not fit together.
        """
        nodes = {group: checked_node(self.tree[group] | dict(new), group) for group, new in values.items()}
        kept = "" if "weights" in values.get("backbone", {}) else self.weights
        return coherent(replace(self, tree=self.tree | nodes, weights=kept))

    def without_attention(self) -> Config:
        """This configuration with ``attention=none``."""
        none = {TARGET: "attnbench.models.attention.none.none"}
        choices = self.choices | {"attention": "none"}
        declared = {key: value for key, value in self.declared.items() if not key.startswith("attention.")}
        plain = replace(self, tree=self.tree | {"attention": none}, choices=choices, declared=declared)
        return coherent(plain)

    def build(self, group: str, *args: Any, **supplied: Any) -> Any:
        """Call the builder of a group with its options and the values that the caller supplies."""
        return build(self.tree[group], group, *args, **supplied)


def coherent(config: Config) -> Config:
    """Refuse options that do not fit together, and set values that follow from others.

    Without attention, the placement is none. ``dataset=folder`` gets a name from its folder. The name of the initial
    weights becomes part of the run's.

    Raises:
        ConfigError: options that do not fit together; it names the wrong key and what to do.
    """
    _refuse_other_task(config)
    _refuse_two_warmups(config)
    _refuse_division(config)
    if config.choices["dataset"] in NAMED_BY_FOLDER and not config.tree["dataset"]["name"]:
        data = config.tree["dataset"]
        config = replace(config, tree=config.tree | {"dataset": data | {"name": name_of_folder(data["root"])}})
    if weights := config.tree["backbone"].get("weights"):
        config = replace(config, weights=config.weights or initial_weights.name(weights))
    if config.choices["attention"] == "none":
        return _without_placement(config)
    if not (config.tree["placement"].get("roles") or config.tree["placement"].get("paths")):
        what = f"attention={config.choices['attention']} needs a placement"
        raise ConfigError(what, "placement.roles", "use placement=block or layer, or give placement.paths")
    return config


def name_of_folder(root: str) -> str:
    """A name for the data in a folder: the folder's name, with characters replaced that a file name cannot have."""
    own = Path(root).expanduser().resolve().name
    return re.sub(r"[\x00-\x1f\x7f/\\]", "_", own)[:100].strip() or "folder"


def _without_placement(config: Config) -> Config:
    node = _none_placement()
    values = dict(naming.flatten({"placement": node}))
    declared = {key: value for key, value in config.declared.items() if not key.startswith("placement.")}
    return replace(
        config,
        tree=config.tree | {"placement": node},
        choices=config.choices | {"placement": "none"},
        declared=declared | values,
    )


def _refuse_other_task(config: Config) -> None:
    """Refuse a data set or a detector that does not fit the task.

    A user's own data set, with another option file, is assumed to fit.
    """
    choices, detects = config.choices, config.choices.get("task") == "detection"
    dataset, known = choices.get("dataset", ""), shipped_names("dataset")
    if detects != ("detector" in config.tree):
        what, todo = ("task=detection has no detector", f"use one of {', '.join(names('detector'))}")
        if not detects:
            what, todo = f"detector={choices['detector']} needs task=detection", "add task=detection"
        raise ConfigError(what, "detector", todo)
    if dataset in known and detects != (dataset in BOXES):
        fitting = sorted(BOXES if detects else set(known) - BOXES)
        what = f"dataset={dataset} is not for task={choices['task']}"
        raise ConfigError(what, "dataset", f"use {', '.join(fitting)}")
    if detects and choices["detector"].startswith("mask_") and dataset in BOXES - MASKS:
        raise ConfigError(f"dataset={dataset} has no masks", "detector", f"use {', '.join(sorted(MASKS))}")


def _refuse_two_warmups(config: Config) -> None:
    """Refuse a warm-up whose length is given twice."""
    schedule = config.tree["schedule"]
    if schedule.get("warmup_steps") and schedule.get("warmup_epochs"):
        what, todo = "the warm-up has a length in epochs too", "set it to null, or schedule.warmup_epochs to 0"
        raise ConfigError(what, "schedule.warmup_steps", todo)


def _refuse_division(config: Config) -> None:
    """Refuse a fold of ``dataset=folder`` that does not exist, and options of a division without one."""
    data = config.tree["dataset"]
    if config.choices["dataset"] not in NAMED_BY_FOLDER:
        return
    fold, holdout = data.get("fold"), data.get("holdout")
    if fold is not None and holdout is not None:
        raise ConfigError("dataset.holdout is set too", "dataset.fold", "set one of them to null")
    if fold is not None and fold >= data["folds"]:
        what = f"fold={fold}, but there are {data['folds']} folds"
        raise ConfigError(what, "dataset.fold", f"use 0 to {data['folds'] - 1}")
    unused = {"folds": fold is None, "division_seed": fold is None and holdout is None}
    for key, idle in unused.items():
        if idle and f"dataset.{key}" in config.deviations:
            raise ConfigError(f"{key}={data[key]} has no effect", f"dataset.{key}", "set dataset.fold too")


@cache
def _none_placement() -> dict[str, Any]:
    text = (folder() / "placement" / "none.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
