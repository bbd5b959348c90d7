"""A run's trained network with its sites and, on a device, its data: what export, eval and figures start from.

The weights are those that the run evaluates: the moving average where its schedule keeps one. The configuration in a
run's folder is data: it is checked as what a user types, and calls no builder but attnbench's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from attnbench.base.errors import ConfigError, DataError, StorageError
from attnbench.config.composition import Config
from attnbench.data.dataset import Batch, Dataset
from attnbench.models import factory, weights
from attnbench.models.checkpoint import Which, checkpoint, evaluated, refuse_other_config, run_config
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
        classes: how many it tells apart.
        config: its configuration, checked again.
        about: what else is worth knowing, as text that JSON admits: ``checkpoint`` and ``result``.
    """

    model: nn.Module
    sites: list[Site]
    classes: int
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
        """The validation split once, with a progress bar where someone looks on."""
        from rich.console import Console
        from rich.progress import track

        shown = Console(stderr=True)
        return track(self.val.epoch(0), what, len(self.val), console=shown, disable=not sys.stderr.isatty())  # type: ignore[return-value]


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
    if len(data.classes) != trained.classes:
        what = f"{len(data.classes)} classes, the network was trained on {trained.classes}"
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
    config = run_config(run)
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
    return assembled(config, evaluated(state), where, {"checkpoint": about, "result": result})


def assembled(config: Config, tensors: Mapping[str, Tensor], where: Path, about: dict[str, Any]) -> Trained:
    """The network of a configuration with given weights; stock weights are not looked for.

    Raises:
        StorageError: the weights are not of that configuration.
    """
    classes = _classes(config, tensors)
    try:
        model, sites = factory.network(factory.without_weights(config), classes)
    except ConfigError as error:
        raise StorageError(f"its network cannot be built: {error}", where) from error
    weights.load(model, tensors, where)
    return Trained(model.eval(), sites, classes, config, about)


def _classes(config: Config, tensors: Mapping[str, Tensor]) -> int:
    """How many classes a network's weights tell apart: the size of what depends on their number."""
    ten, eleven = (factory.sketch(config, number)[0].state_dict() for number in (10, 11))
    for key in ten.keys() & tensors.keys():
        for axis, (one, other) in enumerate(zip(ten[key].shape, eleven[key].shape, strict=True)):
            if one != other and tensors[key].ndim == ten[key].ndim:
                return 10 + (tensors[key].shape[axis] - one) // (other - one)
    return 10  # whatever they are, they are not this network's: loading them says so
