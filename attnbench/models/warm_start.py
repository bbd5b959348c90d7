"""Starts a network from weights that were trained before: those of a run, or those in a file (``backbone.weights``).

A file may have the names of attnbench, of the stock network (torchvision's, timm's), of timm's networks with SE or ECA,
or of the released ECA-Nets; the layout that names most of its tensors is taken. If only some of its names have the
prefix of a wrapper, such as ``model.`` in a file of Lightning with metrics beside the network, the others are left out.
Every tensor of the stock network must be there with the right shape. The classifier is left out if it has other
classes. Attention that a file does not have keeps its random weights, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from attnbench.base.errors import ConfigError, listed
from attnbench.config import initial_weights
from attnbench.config.configuration import Config
from attnbench.models import checkpoint, regions, weights
from attnbench.models.insertion import Attended

log = logging.getLogger("attnbench")


@dataclass(frozen=True)
class Loaded:
    """What became of the given weights.

    Attributes:
        layout: whose names they have, such as ``ECA-Net's``.
        tensors: the number of tensors that were loaded.
        left_out: names of given tensors that were not loaded.
        new: names of the network's tensors that keep their initial, random values.
        head: the name of the classifier; "" if it is not known.
        sites: where attention keeps its random weights.
    """

    layout: str
    tensors: int
    left_out: list[str]
    new: list[str]
    head: str
    sites: list[str]

    def __str__(self) -> str:
        loaded = f"{self.tensors} tensors loaded by {self.layout} names"
        return ", ".join([loaded, self._left_out(), self._new()])

    def _left_out(self) -> str:
        if not self.left_out:
            return "none left out"
        others = [name for name in self.left_out if not self._is_head(name)]
        what = [*([self.head] if len(others) < len(self.left_out) else []), *others]
        return f"{len(self.left_out)} left out ({listed(what)})"

    def _new(self) -> str:
        if not self.new:
            return "none new"
        where = [self.head] if any(map(self._is_head, self.new)) else []
        where += [f"attention at {len(self.sites)} sites"] if self.sites else []
        return f"{len(self.new)} new with random weights ({', '.join(where)})"

    def _is_head(self, name: str) -> bool:
        return bool(self.head) and name.startswith(f"{self.head}.")


def start(model: nn.Module, config: Config) -> Loaded:
    """Load the weights of ``backbone.weights`` into a backbone with its attention.

    Args:
        model: the backbone; that of a detector has no classifier.

    Raises:
        ConfigError: the backbone, attention or placement of the given run differs; the message names the keys.
        StorageError: there is no such run or file, it is damaged, or its weights do not fit.
    """
    source = initial_weights.locate(config.tree["backbone"]["weights"], config.seed)
    if source.is_file():
        loaded = _load(model, weights.read(source), source, LAYOUTS)
    else:
        loaded = _load(model, checkpoint.of_run(source, config), source, ["attnbench's"])
    log.info("backbone.weights: %s: %s", source, loaded)
    return loaded


# Views of a network's tensors under the names of other layouts, in the order of its own.
LAYOUTS: dict[str, Callable[[nn.Module], Mapping[str, Tensor]]] = {
    "attnbench's": lambda model: model.state_dict(),
    "the stock network's": weights.as_stock,
    "ECA-Net's": weights.as_released,
    "timm's": weights.as_timm,
}


def _load(model: nn.Module, given: Mapping[str, Tensor], where: Path, layouts: Iterable[str]) -> Loaded:
    """Load weights in the layout that names most of them."""
    views = {name: view for name in layouts if (view := _view(model, name))}
    readings = [(name, named, beside) for named, beside in weights.unwrapped(given) for name in views]
    layout, named, beside = max(readings, key=lambda reading: len(views[reading[0]].keys() & reading[1].keys()))
    view, head = views[layout], regions.head(model)
    ours, theirs = ({key for key in some if head and key.startswith(f"{head}.")} for some in (view, named))
    other = ours != theirs or any(view[key].shape != named[key].shape for key in ours)
    kept = {key: value for key, value in named.items() if not (other and key in theirs)}
    lacking = [site for site, names in _attentions(model, view).items() if names and not names & kept.keys()]
    new = {name for site in lacking for name in _attentions(model, view)[site]} | (ours if other else set())
    weights.copy({key: value for key, value in view.items() if key not in new}, kept, where)
    left_out = [*([key for key in named if key in theirs] if other else []), *beside]
    return Loaded(layout, len(kept), left_out, [key for key in view if key in new], head, lacking)


def _view(model: nn.Module, layout: str) -> Mapping[str, Tensor] | None:
    """A network's tensors under a layout's names; None if its attention has no place in that layout."""
    try:
        return LAYOUTS[layout](model)
    except ConfigError:
        return None


def _attentions(model: nn.Module, view: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """For each site, the names of its attention's tensors in a layout."""
    names = dict(zip(model.state_dict(), view, strict=True))
    sites = [path for path, module in model.named_modules() if isinstance(module, Attended)]
    return {site: {theirs for own, theirs in names.items() if own.startswith(f"{site}.attention.")} for site in sites}
