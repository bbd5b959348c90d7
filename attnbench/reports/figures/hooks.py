"""Record what attention reads and returns: forward hooks on its squeeze and on its signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.data.dataset import Batch
from attnbench.models.attention.squeeze import Squeeze
from attnbench.models.insertion import Attended, Site
from attnbench.models.placement import known_blocks
from attnbench.runs.load import Ready, Trained

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]  # torch's signature of a forward hook

TIMEOUT = 120.0  # seconds to wait for a worker that decodes images
DETECTOR = ConfigError("this is a run of a detector", "--runs", "give a run of a classification network")


@dataclass(frozen=True)
class Block:
    """A block and the attention in it.

    Attributes:
        name: such as ``3_2``, the second block of the third stage, where the stem is the first stage.
        path: the path of the block's ``Attended`` module.
    """

    name: str
    path: str


@dataclass
class Activations:
    """Attention's squeezed inputs and its signals for the last batch, (N, C) each, by the path of its ``Attended``."""

    squeezes: dict[str, Tensor] = field(default_factory=dict)
    signals: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recording(model: nn.Module) -> Iterator[Activations]:
    """Record every attention of a network; signals other than one number for each channel are left out."""
    recorded = Activations()
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, Attended):
            hooks.append(module.attention.register_forward_hook(_signal(recorded.signals, path, module)))
            squeeze = next((part for part in module.attention.modules() if isinstance(part, Squeeze)), None)
            if squeeze is not None:
                hooks.append(squeeze.register_forward_hook(_keep(recorded.squeezes, path)))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _keep(into: dict[str, Tensor], path: str) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        into[path] = output.detach()

    return hook


def _signal(into: dict[str, Tensor], path: str, attended: Attended) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if attended.combine != "replace" and output.shape[2:] == (1, 1):
            into[path] = output.detach().flatten(1)

    return hook


def blocks(trained: Trained, wanted: Sequence[str]) -> tuple[list[Block], list[str]]:
    """The wanted blocks of a network that have attention, and the names of those that it lacks.

    If a block has several sites, the last one counts: at its output or at its last convolution.

    Args:
        wanted: names of blocks. If it is empty, or the network has none of them, all blocks are returned.

    Raises:
        ConfigError: the network has no attention.
    """
    if not trained.sites:
        what = f"no attention in this network ({trained.config.choices['backbone']})"
        raise ConfigError(what, "--runs", "give a run with attention")
    names = _names(trained.model)
    last: dict[str, Site] = {site.block: site for site in trained.sites}
    found = {names[block]: Block(names[block], site.path) for block, site in last.items()}
    chosen = [found[name] for name in wanted if name in found]
    return chosen or list(found.values()), [name for name in wanted if name not in found]


def _names(model: nn.Module) -> dict[str, str]:
    """The names of a network's blocks, by their paths."""
    seen: Counter[int] = Counter()
    names = {}
    for path, stage, _ in known_blocks(model):
        seen[stage] += 1
        names[path] = f"{stage + 1}_{seen[stage]}"
    return names


@dataclass(frozen=True)
class Squeezed:
    """What the attention of some blocks reads of some images.

    Attributes:
        images: uint8 (N, 3, H, W), the network's input before normalisation.
        labels: the class of each image.
        values: the squeezed values (N, C), by the block's name.
    """

    images: Tensor
    labels: list[str]
    blocks: list[Block]
    values: dict[str, Tensor]


@torch.no_grad()
def squeezed(opened: Ready, here: list[Block], images: Sequence[int]) -> Squeezed:
    """The global average pooled activations of single validation images.

    Args:
        images: their indices in the validation split.

    Raises:
        ConfigError: the attention has no global average pooling, or an index is out of range.
    """
    count = len(opened.data.val)
    if wrong := [number for number in images if not 0 <= number < count]:
        raise ConfigError(f"there is no image {wrong[0]}", "--images", f"use 0 to {count - 1}")
    steps = [torch.tensor(list(images))]
    ((pixels, targets),) = opened.data.val.batches(steps, None, workers=0, timeout=TIMEOUT)
    if not (isinstance(pixels, Tensor) and isinstance(targets, Tensor)):
        raise DETECTOR
    with recording(opened.model) as recorded, opened.process.autocast():
        opened.model(opened.val.normalised(pixels))
    _refuse_unrecorded(here, recorded.squeezes, "has no global average pooling")
    labels = [opened.data.classes[target] for target in targets.tolist()]
    values = {block.name: recorded.squeezes[block.path].float().cpu() for block in here}
    return Squeezed(pixels.cpu(), labels, here, values)


def spaced(count: int, of: int) -> list[int]:
    """At most ``count`` evenly spaced integers in [0, of)."""
    return [(2 * i + 1) * of // (2 * count) for i in range(min(count, of))]


@dataclass(frozen=True)
class Weights:
    """Mean channel weights of some blocks.

    Attributes:
        classes: names of all classes in the validation split, in order.
        means: float64 (classes, C), by the block's name.
        images: the number of images.
    """

    classes: list[str]
    blocks: list[Block]
    means: dict[str, Tensor]
    images: int


@torch.no_grad()
def mean_weights(opened: Ready, here: list[Block], what: str) -> Weights:
    """Average attention's signals over the validation images of each class.

    Args:
        what: the label of the progress display.

    Raises:
        ConfigError: attention's signal is not one number for each channel.
    """
    number = len(opened.data.classes)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(number, dtype=torch.float64)
    with recording(opened.model) as recorded, opened.process.autocast():
        for batch in opened.batches(what):
            opened.model(batch.images)
            _refuse_unrecorded(here, recorded.signals, "has no weight for each channel")
            _add(batch, here, recorded.signals, sums, counts)
    there = counts > 0
    means = {name: total[there] / counts[there, None] for name, total in sums.items()}
    classes = [name for name, seen in zip(opened.data.classes, there.tolist(), strict=True) if seen]
    return Weights(classes, here, means, int(counts.sum()))


def _add(batch: Batch, here: list[Block], signals: dict[str, Tensor], sums: dict[str, Tensor], counts: Tensor) -> None:
    """Add a batch's signals to the sums of their classes, in place."""
    if not isinstance(batch.targets, Tensor):
        raise DETECTOR
    targets = batch.targets.cpu()
    counts += torch.bincount(targets, minlength=len(counts))
    for block in here:
        signal = signals[block.path].double().cpu()
        total = sums.setdefault(block.name, torch.zeros(len(counts), signal.shape[1], dtype=torch.float64))
        total.index_add_(0, targets, signal)


def _refuse_unrecorded(here: list[Block], recorded: dict[str, Tensor], what: str) -> None:
    if missing := [block.path for block in here if block.path not in recorded]:
        raise ConfigError(
            f"the attention at {missing[0]} {what}", "--runs", "give a run with another attention, such as eca"
        )
