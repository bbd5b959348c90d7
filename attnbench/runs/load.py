"""Loads a run's trained network with its sites and, on a device, its data, for export, eval and figures.

The weights are those that the run evaluates: their moving average if the schedule has one. The configuration in a run's
folder is checked like a command line, and can call only attnbench's own builders.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from attnbench.base import console, files
from attnbench.base.errors import ConfigError, StorageError
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.data.dataset import Batch, Dataset
from attnbench.data.matching import STRICT, Matched, Matching, matched
from attnbench.models import factory, weights
from attnbench.models.checkpoint import Which, checkpoint, evaluated, refuse_other_config
from attnbench.models.insertion import Site
from attnbench.runs.data import root_of
from attnbench.runs.elsewhere import evaluation_data
from attnbench.runs.folder import RunFolder
from attnbench.training import setup
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process

log = logging.getLogger("attnbench")

FREE = ("dataset", "runtime")  # groups whose options may differ from the training


@dataclass(frozen=True)
class Trained:
    """A run's trained network and its configuration.

    Attributes:
        model: the network with its weights, in evaluation mode.
        sites: where attention is inserted.
        classes: the names of the classes.
        config: the configuration, checked again.
        about: ``checkpoint``, which weights these are, and ``result``, as values that JSON can hold.
        moved: whether an override gives another folder of data than the run's own.
    """

    model: nn.Module
    sites: list[Site]
    classes: list[str]
    config: Config
    about: dict[str, Any]
    moved: bool = False

    def with_overrides(self, overrides: Sequence[str]) -> Trained:
        """A copy with other options of dataset or runtime, such as ``dataset.root=DIR``.

        Raises:
            ConfigError: an override is not valid, or changes an option of the training.
        """
        values: dict[str, dict[str, Any]] = {}
        for override in overrides:
            key, equals, value = override.partition("=")
            group, _, name = key.partition(".")
            if not (equals and name) or group not in FREE:
                todo = "write dataset.root=DIR, runtime.device=cpu or another key of these two groups"
                raise ConfigError(f"{override} cannot be changed after the training", "command line", todo)
            values.setdefault(group, {})[name] = yaml.safe_load(value)
        config = self.config.updated(values)
        return replace(self, config=config, moved=self.moved or _place(config) != _place(self.config))


def _place(config: Config) -> Path | None:
    """The folder of a configuration's data, without links."""
    root = root_of(config)
    return root.resolve() if root else None


@dataclass(frozen=True)
class Ready:
    """A trained network on its device, with its data.

    Attributes:
        data: the data; ``classes`` are the network's, or those that it may answer.
        val: batches of the validation split, normalised, on the device, with the network's labels.
        matched: how the classes of the data were matched with the network's.
    """

    model: nn.Module
    data: Dataset
    val: Feed
    process: Process
    matched: Matched

    def batches(self, what: str) -> Iterator[Batch]:
        """The validation split once, with a progress display on stderr.

        Args:
            what: what is done with it, such as ``evaluating``, for the display.
        """
        with console.counting(len(self.val), "batches", what) as advance:
            for batch in self.val.epoch(0):
                yield batch
                advance(1)


@contextmanager
def ready(trained: Trained, matching: Matching = STRICT) -> Iterator[Ready]:
    """Move a trained network to its device and open its data.

    Attention uses the reference implementation, module by module, so that hooks see every part of it.

    Args:
        matching: how the classes of the data are matched with the network's: always by name.

    Raises:
        ConfigError: the device does not exist.
        DataError: the data cannot be opened, or have other classes than ``matching`` allows.
    """
    runtime = trained.config.build("runtime")
    runtime.check()
    own = ((trained.about.get("result") or {}).get("data") or {}).get("fingerprint", "")
    opened = evaluation_data(trained.config, trained.moved, own)
    where = root_of(trained.config) or "dataset"
    found = matched(opened, trained.classes, matching, where, boxes="detector" in trained.config.tree)
    with runtime.start() as process:
        model = process.place(trained.model).eval()
        val = setup.validation(trained.config, found.data, process)
        yield Ready(model, found.data, val, process, found)


def load_run(run: Path, which: Which = "last") -> Trained:
    """Load the trained network of a run. If the run is not finished, log a warning.

    Args:
        which: ``last``: the last epoch's weights, whose accuracy is ``top1`` in result.json and is reported in the
            papers' tables. ``best``: those of the epoch with ``best_top1``, which was chosen on the validation images.

    Raises:
        StorageError: the folder is not a run's, or the checkpoint is damaged or belongs to another network.
    """
    config = stored.checked(stored.read(run), run / "config.yaml")
    state, digest = checkpoint(run / "checkpoints", which)
    refuse_other_config(config, state, run)
    result = RunFolder(run).result()
    if result is None:
        epochs = config.tree["schedule"].get("epochs")
        log.warning(
            "this run is not finished: these are its %s weights after %d of %s epochs", which, state["epoch"], epochs
        )
    about = {"which": which, "epoch": state["epoch"], "finished": result is not None, "sha256": digest}
    where = run / "checkpoints" / f"{which}.pt"
    return assembled(config, evaluated(state), class_names(run), where, {"checkpoint": about, "result": result})


def class_names(run: Path) -> list[str]:
    """The names of a run's classes from its classes.json, in the order of their numbers.

    Raises:
        StorageError: the file is missing or is not a list of names.
    """
    names = files.read_json(run / "classes.json")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise StorageError("no list of class names", run / "classes.json", "restore it")
    return names


def assembled(
    config: Config, tensors: Mapping[str, Tensor], classes: Sequence[str], where: Path, about: dict[str, Any]
) -> Trained:
    """Build a configuration's network and load the given weights into it, without looking for stock weights.

    Args:
        classes: the names of the classes.
        where: the file of the weights, for error messages.

    Raises:
        StorageError: the weights do not fit the configuration.
    """
    try:
        model, sites = factory.network(factory.without_weights(config), len(classes))
    except ConfigError as error:
        raise StorageError(f"its network cannot be built: {error}", where) from error
    weights.load(model, tensors, where)
    return Trained(model.eval(), sites, list(classes), config, about)
