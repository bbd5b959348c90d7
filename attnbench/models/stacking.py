"""Stacks S networks of the same architecture into one, by replacing their leaf modules.

Modules without weights are kept, because they process each sample independently. Layers whose weights can be stacked
are replaced by layers of ``ops/packed.py``; for any other module with weights the networks take turns. ``mistake``
checks on a small batch that the stacked network computes the same as the S networks alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.models.attention.branch import GATES, Gated
from attnbench.models.attention.sb import ShiftAndBalance
from attnbench.models.insertion import Attended, reference
from attnbench.models.ops.packed import Packed, PackedConv, PackedDropout, PackedLinear, PackedNorm, Turns

TOLERANCE = 1e-6  # between a network alone and in a stack, in float64: far above rounding, far below a real error


class PackedShift(Packed):
    """SB's signal, with each network's own lambda; see ``ShiftAndBalance``."""

    lambda_: Tensor
    squeeze: nn.Module
    branch: Any

    def forward(self, x: Tensor) -> Tensor:
        """The signal in a shape that broadcasts over maps, (S N, C_in, H, W) to (S N, C_out, 1, 1)."""
        return self.signal(self.squeeze(x))[:, :, None, None]

    def signal(self, pooled: Tensor) -> Tensor:
        """The shift of each channel, (S N, C_in) to (S N, C_out)."""
        return (self.lambda_.flatten(1)[:, None] * self.apart(self.branch.signal(pooled))).flatten(0, 1)


class PackedGate(Packed):
    """The gates of S networks, which may differ; see ``Gated``."""

    def __init__(self, members: Sequence[Any], generators: Sequence[torch.Generator]) -> None:
        super().__init__(members, generators)
        self.gates = [GATES[member.gate] for member in members]

    def forward(self, z: Tensor) -> Tensor:
        """Each network's gate on its own samples, (S N, C)."""
        if len(set(self.gates)) == 1:
            return self.gates[0](z)
        return torch.cat([gate(mine) for gate, mine in zip(self.gates, z.chunk(len(self.gates)), strict=True)])


# By exact type: a subclass may compute something else.
PACKED: dict[type[nn.Module], type[Packed]] = {
    nn.Conv1d: PackedConv,
    nn.Conv2d: PackedConv,
    nn.Linear: PackedLinear,
    nn.BatchNorm1d: PackedNorm,
    nn.BatchNorm2d: PackedNorm,
    nn.Dropout: PackedDropout,
    Gated: PackedGate,
    ShiftAndBalance: PackedShift,
}


class Stack:
    """Networks of the same architecture as one; their parameters and buffers become slices of the stacked ones.

    Args:
        models: the networks, on one device.
        generators: a random number generator for each network, on that device.

    Attributes:
        network: maps (S N, ...) inputs, the first network's samples first, to (S N, ...) outputs.
        in_turns: the modules for which the networks take turns, dotted name to type.

    Raises:
        ValueError: two layers of a network share a weight.
    """

    def __init__(self, models: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        self.models, self.generators = tuple(models), tuple(generators)
        self.in_turns: dict[str, str] = {}
        self.network = self._packed(self.models, "")
        leaves = [leaf for leaf in self.network.modules() if isinstance(leaf, Packed)]
        self.shared = [
            (whole, [getattr(member, name) for member in leaf.members])
            for leaf in leaves
            for name, whole in leaf.named_parameters(recurse=False)
        ]
        if len({id(parameters[0]) for _, parameters in self.shared}) < len(self.shared):
            raise ValueError("two layers share a weight, which cannot be a slice of two stacked weights")

    def _packed(self, members: Sequence[nn.Module], path: str) -> nn.Module:
        kind = type(members[0])
        if kind in PACKED and getattr(members[0], "padding_mode", "zeros") == "zeros":
            packed: nn.Module = PACKED[kind](members, self.generators)
        elif _is_structure(members):
            packed = copy.copy(members[0])
            packed._modules = {}
            if isinstance(packed, Attended):
                packed.backend = reference  # the other backends need a stock batch norm
        else:
            self.in_turns[path.lstrip(".")] = kind.__name__
            return Turns(members, self.generators)
        for name, child in members[0]._modules.items():
            below = None if child is None else self._packed([m._modules[name] for m in members], f"{path}.{name}")  # type: ignore[misc]
            packed._modules[name] = below
        return packed

    def hand_out(self) -> None:
        """Add the gradients of the stacked weights to those of the networks' own parameters, and clear them."""
        for whole, parameters in self.shared:
            if whole.grad is not None:
                for parameter, mine in zip(parameters, whole.grad.unbind(), strict=True):
                    parameter.grad = mine if parameter.grad is None else parameter.grad + mine
                whole.grad = None


def _is_structure(members: Sequence[nn.Module]) -> bool:
    """Whether modules only call other modules and functions, all in the same way: then one serves all networks."""
    first = members[0]
    owns = any(t is not None for t in (*first._parameters.values(), *first._buffers.values()))
    return not owns and not hasattr(first, "set_progress") and all(_plain(m) == _plain(first) for m in members)


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are numbers, strings or collections of them."""
    return {k: v for k, v in vars(module).items() if k[0] != "_" and _is_plain(v)}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def mistake(models: Sequence[nn.Module], images: Tensor) -> str:
    """How stacked networks differ from the same networks alone after one training step; "" if they do not.

    Args:
        models: networks of the same architecture, in training mode; only copies are used.
        images: (S, N, ...), a small batch for each network.
    """
    alone, packed = [_exact(model) for model in models], [_exact(model) for model in models]
    images, device = images.double(), images.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            expected = torch.cat([_seeded(s, model)(images[s]) for s, model in enumerate(alone)])
        stack = Stack(packed, [torch.Generator(device).manual_seed(s) for s in range(len(models))])
        got = stack.network(images.flatten(0, 1))
        for outputs in (expected, got):
            outputs.square().mean().backward()
        stack.hand_out()
    except Exception as error:  # a network that was not written for this may raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if not _close(expected, got):
        return "its outputs differ"
    for one, other in zip(alone, packed, strict=True):
        for (name, a), (_, b) in zip(_learned(one), _learned(other), strict=True):
            if not _close(a, b):
                return f"{name} differs"
    return ""


def _exact(model: nn.Module) -> nn.Module:
    """A float64 copy with reference attention, and without dropout, whose random numbers may depend on the device."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attended):
            module.backend = reference
    return model


def _seeded(seed: int, model: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    return model


def _learned(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """The gradients of all parameters, then all buffers, by name."""
    yield from ((name, parameter.grad) for name, parameter in model.named_parameters())
    yield from model.named_buffers()


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool((a - b).double().norm() <= TOLERANCE * (1 + a.double().norm()))
