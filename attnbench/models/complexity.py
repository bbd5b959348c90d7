"""Counts parameters, multiply-adds and activations, and counts operations as the papers do.

Multiply-adds are those of all convolutions and matrix products, as torch's own counter finds them. The papers count
in other ways, which ``COUNTERS`` lists:

    macs       multiply-adds of convolutions and matrix products
    sb         the SB paper (Table 1), multiplications only: macs, plus 1 per element that a gate multiplies
    thop2019   the ECA paper (Tables 2 and 3), a layer counter of early 2019. A convolution costs its multiply-adds, a
               linear layer (2 in - 1) out, batch norm 4 per input element, ReLU 1 per element but only in a module's
               last call, global pooling for attention (window + 1) per output, pooling of side k: k per output (max)
               or k + 1 (average). Functions that are not modules cost nothing. The head's pooling counts as
               AvgPool2d(7).
    thop2019_late  the same counter since August 2019: activations and max pooling cost nothing
    detection  the ECA paper (Table 4). A convolution costs its multiply-adds, plus 1 per output for a bias, batch norm
               2 and ReLU 1 per element in every call, pooling 1 per input element, a linear layer in x out, a
               transposed convolution as much as a convolution over its output. A detector is counted with 1000 regions
               and 100 masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnbench.models.attention.squeeze import Squeeze
from attnbench.models.insertion import Attended, Site

Rule = Callable[[Any, Any, Any], int]  # module, input, output
Size = int | tuple[int, int]  # side of a square image, or height and width


@dataclass(frozen=True)
class SiteCount:
    """A site, the parameters and multiply-adds that attention adds there, and a short description of its size."""

    path: str
    block: str
    role: str
    stage: int
    in_channels: int
    out_channels: int
    params: int
    macs: int
    detail: str


@dataclass(frozen=True)
class Complexity:
    """A network's size for one image.

    Attributes:
        params: learned parameters, without running statistics.
        macs: multiply-adds.
        activations: output elements of convolutions and linear layers.
        attention_params, attention_macs: what the network has in addition to the one without attention.
        sites: what attention adds at each site.
    """

    params: int
    macs: int
    activations: int
    attention_params: int
    attention_macs: int
    sites: list[SiteCount]

    def as_dict(self) -> dict[str, Any]:
        """The counts by name, for JSON."""
        return asdict(self)


def measure(model: nn.Module, plain: nn.Module, sites: list[Site], size: Size) -> Complexity:
    """The size of a network and of the attention in it.

    Args:
        model: the network with attention.
        plain: the same network without attention.
        sites: what ``insert`` returned for the model.
        size: side of a square image, or height and width.
    """
    counted = _counted(model, size, {"macs": MACS, "activations": ACTIVATIONS})
    ours, stock = counted.macs, _counted(plain, size, {"macs": MACS}).macs
    return Complexity(
        params=params(model),
        macs=ours[""],
        activations=counted.operations["activations"],
        attention_params=params(model) - params(plain),
        attention_macs=ours[""] - stock[""],
        sites=[_at_site(model, plain, site, ours, stock) for site in sites],
    )


def _at_site(model: nn.Module, plain: nn.Module, site: Site, ours: dict[str, int], stock: dict[str, int]) -> SiteCount:
    """What attention adds at a site: the new module's counts, minus those of the stock modules that it replaces."""
    module = model.get_submodule(site.path)
    before = [site.path, *site.absorbs]
    return SiteCount(
        site.path,
        site.block,
        site.role,
        site.stage,
        site.in_channels,
        site.out_channels,
        params(module) - sum(params(plain.get_submodule(path)) for path in before),
        ours.get(site.path, 0) - sum(stock.get(path, 0) for path in before),
        detail(module),
    )


def params(model: nn.Module) -> int:
    """Learned parameters: weights, biases, norm scales and shifts; running statistics are not counted."""
    return sum(p.numel() for p in model.parameters())


def trainable(model: nn.Module) -> int:
    """Parameters that training changes; those of frozen stages are not counted."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs(model: nn.Module, size: Size) -> int:
    """Multiply-adds for one image, in evaluation mode."""
    return MACS(model, size)


def activations(model: nn.Module, size: Size) -> int:
    """Output elements of convolutions and linear layers for one image."""
    return ACTIVATIONS(model, size)


def operations(model: nn.Module, size: Size) -> dict[str, int]:
    """What each of ``COUNTERS`` counts for one image, in a single forward pass."""
    return _counted(model, size, COUNTERS).operations


def detail(module: nn.Module) -> str:
    """A short description of an attention's size: ECA's kernel size, the hidden width of a branch."""
    texts = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d):
            texts.append(f"k {layer.kernel_size[0]}" if layer.groups == 1 else f"{layer.groups} groups")
        elif isinstance(hidden := getattr(layer, "reduce", None), (nn.Linear, nn.Conv2d)):
            texts.append(f"hidden {hidden.weight.shape[0]}")
    return ", ".join(dict.fromkeys(texts))


LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _convolution(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * module.weight[0].numel()  # one product per weight of the filter that computes an element


def _side(x: Tensor) -> int:
    return x.shape[-1]


THOP2019: dict[type, Rule] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Linear: lambda module, x, y: (2 * module.in_features - 1) * y.numel(),
    nn.BatchNorm1d: lambda module, x, y: 4 * x.numel(),
    nn.BatchNorm2d: lambda module, x, y: 4 * x.numel(),
    nn.ReLU: lambda module, x, y: x.numel(),
    nn.ReLU6: lambda module, x, y: x.numel(),
    nn.MaxPool2d: lambda module, x, y: module.kernel_size * y.numel(),
    nn.AvgPool2d: lambda module, x, y: (module.kernel_size + 1) * y.numel(),
    nn.AdaptiveAvgPool2d: lambda module, x, y: (_side(x) + 1) * y.numel(),
    Squeeze: lambda module, x, y: x.numel() + y.numel(),
}

# Since August 2019 the same counter ignores activations and max pooling.
THOP2019_LATE = {kind: rule for kind, rule in THOP2019.items() if kind not in (nn.ReLU, nn.ReLU6, nn.MaxPool2d)}

DETECTION: dict[type, Rule] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: lambda module, x, y: _convolution(module, x, y) + (y.numel() if module.bias is not None else 0),
    nn.ConvTranspose2d: lambda module, x, y: y.numel() * module.weight[:, 0].numel() + y.numel(),
    nn.Linear: lambda module, x, y: module.in_features * y.numel(),
    nn.BatchNorm2d: lambda module, x, y: 2 * x.numel(),
    nn.ReLU: lambda module, x, y: x.numel(),
    nn.MaxPool2d: lambda module, x, y: x.numel(),
    nn.AdaptiveAvgPool2d: lambda module, x, y: x.numel(),
    Squeeze: lambda module, x, y: x.numel(),
}

# By name, so that torchvision need not be imported. Its proposal head has a ReLU module, which the rules above count.
# The paper's toolkit calls ReLU as a function there, which costs nothing, so its operations are subtracted.
DETECTION_HEADS: dict[str, Rule] = {"RPNHead": lambda module, x, y: -sum(feature.numel() for feature in x)}


@dataclass(frozen=True)
class Counter:
    """A way of counting operations; called with a network and the size of an image, it returns their number.

    Args:
        rules: operations of a module, by its type or by the name of its type.
        every_use: count every call of a module; else only its last one.
        macs: add the multiply-adds that torch's own counter finds.
    """

    rules: Mapping[Any, Rule]
    every_use: bool = True
    macs: bool = False

    def __call__(self, model: nn.Module, size: Size) -> int:
        """The number of operations for one image, in evaluation mode."""
        return _counted(model, size, {"": self}).operations[""]

    def rule(self, module: nn.Module) -> Rule | None:
        """The rule of a module, if it has one."""
        return self.rules.get(type(module)) or self.rules.get(type(module).__name__)


MACS = Counter({}, macs=True)
ACTIVATIONS = Counter(dict.fromkeys(LAYERS, lambda module, x, y: y.numel()))
# Multiply-adds and the broadcast products of gates. SB's shift is a sum, so it adds no multiplication.
MULTIPLICATIONS = Counter({Attended: lambda module, x, y: y.numel() if module.combine == "mul" else 0}, macs=True)

COUNTERS = {
    "macs": MACS,
    "sb": MULTIPLICATIONS,
    "thop2019": Counter(THOP2019, every_use=False),
    "thop2019_late": Counter(THOP2019_LATE, every_use=False),
    "detection": Counter({**DETECTION, **DETECTION_HEADS}),
}


def sb_overhead(cin: int, hidden: int, cout: int, height: int, width: int) -> dict[str, int]:
    """Multiplications and additions of one SB branch, by equations 10 to 17 of the SB paper.

    They include pooling, the two fully connected layers and the use of the signal, but not norms and activations.
    """
    return {
        "multiplies": cin + cin * hidden + hidden * cout + cout,
        "adds": cin * height * width + cin * hidden + hidden * cout + cout * height * width,
    }


class _Counted(NamedTuple):
    """Multiply-adds in each module by its dotted name, where the empty name is the whole network; and operations."""

    macs: dict[str, int]
    operations: dict[str, int]


def _counted(model: nn.Module, size: Size, counters: Mapping[str, Counter]) -> _Counted:
    """What some counters count in a single forward pass, by their names."""
    uses = {name: _Uses(counter) for name, counter in counters.items()}
    hooks = [
        module.register_forward_hook(use)
        for module in model.modules()
        for use in uses.values()
        if use.counter.rule(module)
    ]
    try:
        macs = _run(model, size, macs=any(counter.macs for counter in counters.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return _Counted(macs, {name: use.total + (macs[""] if use.counter.macs else 0) for name, use in uses.items()})


class _Uses:
    """Adds up the operations of a counter's rules; a forward hook."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.operations: dict[nn.Module, int] = {}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        rule = self.counter.rule(module)
        assert rule
        before = self.operations.get(module, 0) if self.counter.every_use else 0
        self.operations[module] = before + rule(module, inputs[0], output)

    @property
    def total(self) -> int:
        return sum(self.operations.values())


def _run(model: nn.Module, size: Size, *, macs: bool) -> dict[str, int]:
    """A forward pass; the multiply-adds in each module and in the network (the empty name), if they are wanted."""
    with _evaluated(model), FlopCounterMode(display=False) if macs else nullcontext() as counter:
        model(image(model, size))
    if counter is None:
        return {}
    root = f"{type(model).__name__}."
    by_module = {
        name.removeprefix(root): sum(operations.values()) // 2
        for name, operations in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return {"": counter.get_total_flops() // 2} | by_module


def image(model: nn.Module, size: Size) -> Tensor:
    """An image of zeros on a model's device, (1, 3, H, W)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, 3, height, width, device=next(model.parameters()).device)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
