"""A run's trained network with its sites and, on a device, its data: what export, eval and figures start from.

The weights are those that the run evaluates: the moving average where its schedule keeps one. The configuration in a
run's folder is data: it is checked as what a user types, and calls no builder but attnbench's.
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
from attnbench.base.errors import ConfigError, DataError, StorageError
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.data.dataset import Batch, Dataset
from attnbench.models import factory, weights
from attnbench.models.checkpoint import Which, checkpoint, evaluated, refuse_other_config
from attnbench.models.insertion import Site
from attnbench.runs.folder import RunFolder
from attnbench.training import setup
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process

log = logging.getLogger("attnbench")

FREE = ("dataset", "runtime")  # groups whose options may be others than in training


@dataclass(frozen=True)
class Trained:
    """What a run's folder holds.

    Attributes:
        model: the network with its weights, in evaluation mode.
        sites: where its attention stands.
        classes: the names of what it tells apart.
        config: its configuration, checked again.
        about: what else is worth knowing, as text that JSON admits: ``checkpoint`` and ``result``.
    """

    model: nn.Module
    sites: list[Site]
    classes: list[str]
    config: Config
    about: dict[str, Any]

    def told(self, words: Sequence[str]) -> Trained:
        """The same with other options of data or runtime, such as ``dataset.root=DIR``.

        Raises:
            ConfigError: an option that belongs to the training, or is not valid.
        """
        values: dict[str, dict[str, Any]] = {}
        for word in words:
            key, equals, value = word.partition("=")
            group, _, name = key.partition(".")
            if not (equals and name) or group not in FREE:
                todo = "write dataset.root=DIR, runtime.device=cpu or another key of these two groups"
                raise ConfigError(f"{word} cannot be changed after the training", "command line", todo)
            values.setdefault(group, {})[name] = yaml.safe_load(value)
        return replace(self, config=self.config.updated(values))


@dataclass(frozen=True)
class Ready:
    """A trained network on its device, with its data.

    Attributes:
        val: batches of the validation split, as the network reads them.
    """

    model: nn.Module
    data: Dataset
    val: Feed
    process: Process

    def batches(self, what: str) -> Iterator[Batch]:
        """The validation split once; stderr shows how far it is, and ``what`` is done with it."""
        with console.counting(len(self.val), "batches", what) as advance:
            for batch in self.val.epoch(0):
                yield batch
                advance(1)


@contextmanager
def ready(trained: Trained) -> Iterator[Ready]:
    """Bring a trained network to its device and open its data.

    Its attention runs as it is written, module by module, so that hooks see all of it.

    Raises:
        ConfigError: there is no such device.
        DataError: no data there, or data of another number of classes.
    """
    runtime = trained.config.build("runtime")
    runtime.check()
    data: Dataset = trained.config.build("dataset")
    if len(data.classes) != len(trained.classes):
        what = f"{len(data.classes)} classes, the network was trained on {len(trained.classes)}"
        raise DataError(what, "dataset.root", "give the data set of the run")
    with runtime.start() as process:
        model = process.place(trained.model).eval()
        _, val = setup.feeds(trained.config, data, process)
        yield Ready(model, data, val, process)


def load_run(run: Path, which: Which = "last") -> Trained:
    """The trained network of a run's folder; it may be unfinished, which is said.

    Args:
        which: ``last``, the weights of ``top1`` in result.json, which the papers' tables report; or ``best``, those
            of ``best_top1``, an epoch that was chosen by the images it is reported on.

    Raises:
        StorageError: not a run's folder, a damaged checkpoint, or one of another network.
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
    """The names of a run's classes, by target, as it wrote them down.

    Raises:
        StorageError: it did not.
    """
    names = files.read_json(run / "classes.json")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise StorageError("no list of class names", run / "classes.json", "restore it")
    return names


def assembled(
    config: Config, tensors: Mapping[str, Tensor], classes: Sequence[str], where: Path, about: dict[str, Any]
) -> Trained:
    """The network of a configuration with given weights; stock weights are not looked for.

    Args:
        classes: the names of its classes.

    Raises:
        StorageError: the weights are not of that configuration.
    """
    try:
        model, sites = factory.network(factory.without_weights(config), len(classes))
    except ConfigError as error:
        raise StorageError(f"its network cannot be built: {error}", where) from error
    weights.load(model, tensors, where)
    return Trained(model.eval(), sites, list(classes), config, about)
