"""Starts a network from weights that were trained before: those of a run, or those in a file (``backbone.weights``).

A file may have the names of attnbench, of the stock network (torchvision's, timm's), of timm's networks with SE or ECA,
or of the released ECA-Nets; the layout that names most of its tensors is taken. Every tensor of the stock network must
be there with the right shape. The classifier is left out if it has other classes. Attention that a file does not have
keeps its random weights, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config import initial_weights
from attnbench.config.configuration import Config
from attnbench.models import checkpoint, weights
from attnbench.models.insertion import Attended

log = logging.getLogger("attnbench")

HEADS = ("fc", "classifier", "linear", "head")  # what classifiers are called in torchvision, timm and here


@dataclass(frozen=True)
class Loaded:
    """What became of the given weights.

    Attributes:
        layout: whose names they have, such as ``ECA-Net's``.
        tensors: the number of tensors that were loaded.
        left_out: the classifier, if it was given and not loaded.
        new: the classifier, if it keeps its random weights.
        sites: where attention keeps its random weights.
    """

    layout: str
    tensors: int
    left_out: list[str]
    new: list[str]
    sites: list[str]

    def __str__(self) -> str:
        new = [*self.new, *([f"attention at {len(self.sites)} sites"] if self.sites else [])]
        parts = [f"{self.tensors} tensors by {self.layout} names"]
        parts += [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        parts += [f"not given, so with random weights: {', '.join(new)}"] if new else []
        return "; ".join(parts)


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
    layout = max(views, key=lambda name: len(views[name].keys() & given.keys()))
    view, head = views[layout], _head(model)
    ours, theirs = ({key for key in some if head and key.startswith(f"{head}.")} for some in (view, given))
    other = ours != theirs or any(view[key].shape != given[key].shape for key in ours)
    kept = {key: value for key, value in given.items() if not (other and key in theirs)}
    lacking = [site for site, names in _attentions(model, view).items() if names and not names & kept.keys()]
    new = {name for site in lacking for name in _attentions(model, view)[site]} | (ours if other else set())
    weights.copy({key: value for key, value in view.items() if key not in new}, kept, where)
    return Loaded(layout, len(kept), [head] if theirs and other else [], [head] if ours and other else [], lacking)


def _view(model: nn.Module, layout: str) -> Mapping[str, Tensor] | None:
    """A network's tensors under a layout's names; None if its attention has no place in that layout."""
    try:
        return LAYOUTS[layout](model)
    except ConfigError:
        return None


def _head(model: nn.Module) -> str:
    """The name of a network's classifier, which is an ``Identity`` in the backbone of a detector; "" if not known."""
    return next((name for name in HEADS if hasattr(model, name)), "")


def _attentions(model: nn.Module, view: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """For each site, the names of its attention's tensors in a layout."""
    names = dict(zip(model.state_dict(), view, strict=True))
    sites = [path for path, module in model.named_modules() if isinstance(module, Attended)]
    return {site: {theirs for own, theirs in names.items() if own.startswith(f"{site}.attention.")} for site in sites}
