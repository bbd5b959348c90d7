"""Layers that compute S networks of the same architecture at once.

The networks share tensors (S N, C, ...): the first N samples belong to the first network, the next N to the second, and
so on. Modules that process each sample independently work unchanged. A layer with weights holds the weights of all
networks as one tensor (S, ...), and the networks' own parameters and buffers become slices of it. So each network
remains complete, and code that trains, saves or evaluates it needs no change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.models.ops.depthwise import stencil

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}


def together(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor (S, ...) with the values of S tensors of the same shape, which become its slices."""
    like = torch.empty_like(tensors[0])  # dense, in the format of the first
    shape, stride = (len(tensors), *like.shape), (like.numel(), *like.stride())
    whole = torch.empty_strided(shape, stride, dtype=like.dtype, device=like.device)
    for own, tensor in zip(whole, tensors, strict=True):
        own.copy_(tensor.detach())
        tensor.data = own
    return whole


class Packed(nn.Module):
    """A module for S networks at once, with their parameters and buffers stacked under the same names.

    Args:
        members: the module of each network.
        generators: the random number generator of each network.
    """

    def __init__(self, members: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.members, self.generators = tuple(members), tuple(generators)
        self.training = members[0].training
        for name, parameter in members[0]._parameters.items():
            trained = parameter is not None and parameter.requires_grad
            whole = together([getattr(m, name) for m in members]) if parameter is not None else None
            self.register_parameter(name, None if whole is None else nn.Parameter(whole, requires_grad=trained))
        for name, buffer in members[0]._buffers.items():
            self.register_buffer(name, None if buffer is None else together([getattr(m, name) for m in members]))

    def apart(self, x: Tensor) -> Tensor:
        """(S N, ...) as (S, N, ...)."""
        return x.unflatten(0, (len(self.members), -1))


class PackedLinear(Packed):
    """(S N, ..., C_in) to (S N, ..., C_out)."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Each network's layer on its own samples, (S N, ..., C_in) to (S N, ..., C_out)."""
        rows = self.apart(x).flatten(1, -2)
        return product(rows, self.weight, self.bias).view(*x.shape[:-1], -1)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(S, P, C_in) by weights (S, C_out, C_in) to (S, P, C_out)."""
    return torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)


class PackedConv(Packed):
    """Convolutions of one or two dimensions, with any stride, padding by zeros, dilation and groups."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, members: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        super().__init__(members, generators)
        conv: Any = members[0]
        self.options: Any = (conv.stride, conv.padding, conv.dilation)
        self.groups, self.dimensions = conv.groups, len(conv.kernel_size)
        unpadded = not any(conv.padding) or conv.padding in ("same", "valid")
        self.pointwise = conv.groups == 1 and set(conv.kernel_size) == {1} and unpadded
        self.depthwise = conv.groups == conv.in_channels and self.dimensions == 2 and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        """Each network's convolution on its own samples, (S N, C_in, ...) to (S N, C_out, ...)."""
        return self.route(x)(self, x)

    def route(self, x: Tensor) -> Callable[[PackedConv, Tensor], Tensor]:
        """The fastest of the functions below for an input of this kind."""
        if self.pointwise:
            return matrices
        return stencils if self.depthwise and torch.compiler.is_compiling() else side_by_side


def matrices(conv: PackedConv, x: Tensor) -> Tensor:
    """For kernels of size 1: a batched matrix product, with channels last."""
    strided: Any = (..., *(slice(None, None, step) for step in conv.options[0]))
    x = x[strided].movedim(1, -1)
    y = product(conv.apart(x).flatten(1, -2), conv.weight.flatten(2), conv.bias)
    return y.view(*x.shape[:-1], -1).movedim(-1, 1)


def side_by_side(conv: PackedConv, x: Tensor) -> Tensor:
    """One stock convolution over (N, S C, ...) with the groups of all networks; works on maps with channels last."""
    joined = conv.apart(x.movedim(1, -1)).movedim(0, -2).flatten(-2).movedim(-1, 1)
    bias = None if conv.bias is None else conv.bias.flatten()
    groups = conv.groups * len(conv.members)
    y = CONVOLVE[conv.dimensions](joined, conv.weight.flatten(0, 1), bias, *conv.options, groups)
    return y.movedim(1, -1).unflatten(-1, (len(conv.members), -1)).movedim(-2, 0).flatten(0, 1).movedim(-1, 1)


def stencils(conv: PackedConv, x: Tensor) -> Tensor:
    """For depthwise convolutions under a compiler, which fuses the shifted products."""
    weight = conv.weight.unflatten(1, (conv.groups, -1)).squeeze(3)
    y = stencil(x, weight, *conv.options)
    return y if conv.bias is None else (conv.apart(y) + conv.bias[:, None, :, None, None]).flatten(0, 1)


class PackedNorm(Packed):
    """Batch norm with separate statistics for each network, (S N, C, ...)."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, members: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        super().__init__(members, generators)
        norm: Any = members[0]
        self.eps, self.momentum, self.tracks = norm.eps, norm.momentum, norm.running_mean is not None

    def forward(self, x: Tensor) -> Tensor:
        """Each network's batch norm on its own samples, (S N, C, ...); updates running statistics in training."""
        if self.tracks and not self.training:
            inverse = torch.rsqrt(self.running_var + self.eps)
            rows = (self._rows(x) - self.running_mean[:, None]) * inverse[:, None]
            if self.weight is not None and self.bias is not None:
                rows = torch.addcmul(self.bias[:, None], rows, self.weight[:, None])
            return self._maps(rows.to(x.dtype), x)
        if self.tracks:
            self.num_batches_tracked += 1
        y, mean, variance = Normalised.apply(self._rows(x), self.weight, self.bias, self.eps)
        self._track(mean, variance, x.numel() // mean.numel())
        return self._maps(y, x)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, samples: int) -> None:
        if self.tracks:
            part = 1 / self.num_batches_tracked[:, None] if self.momentum is None else self.momentum
            self.running_mean += (part * (mean - self.running_mean)).to(self.running_mean.dtype)
            unbiased = variance * (samples / (samples - 1))
            self.running_var += (part * (unbiased - self.running_var)).to(self.running_var.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        """(S, P, C) with P = N H W; a view if channels are last in memory."""
        return self.apart(x.movedim(1, -1)).flatten(1, -2)

    def _maps(self, rows: Tensor, x: Tensor) -> Tensor:
        return rows.view(x.movedim(1, -1).shape).movedim(-1, 1)


class Normalised(torch.autograd.Function):
    """y = w (x - mean) / sqrt(var + eps) + b over the P positions of (S, P, C); also mean and biased variance, (S, C).

    Statistics and sums are computed in at least float32. Of the large tensors, only the input is kept for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        """The normalised x, (S, P, C), and the moments, which are not differentiable.

        Args:
            x: (S, P, C).
            weight, bias: (S, C), or None for 1 and 0.
            eps: added to the variance.
        """
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(exact, 1, correction=0)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(shift[:, None], exact, scale[:, None]).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias, from that of y; None for eps."""
        x, mean, inverse, weight = ctx.saved_tensors
        dy = gradients[0].to(mean.dtype)
        centred = x.to(mean.dtype) - mean[:, None]
        bias_gradient = dy.sum(1)
        weight_gradient = (dy * centred).sum(1) * inverse
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * weight_gradient / x.shape[1]
        dx = torch.addcmul((-scale * bias_gradient / x.shape[1])[:, None], centred, slope[:, None])
        dx = dx.addcmul_(dy, scale[:, None]).to(x.dtype)
        return dx, None if weight is None else weight_gradient, None if weight is None else bias_gradient, None


class PackedDropout(Packed):
    """Dropout with a separate probability for each network, which draws the same random numbers as it would alone."""

    def __init__(self, members: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        super().__init__(members, generators)
        self.rates = [float(member.p) for member in members]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Dropout with each network's rate and random numbers, (S N, ...); x itself in evaluation."""
        if not self.training or not any(self.rates):
            return x
        mask = torch.ones_like(x)
        for mine, rate, generator in zip(mask.chunk(len(self.rates)), self.rates, self.generators, strict=True):
            if rate == 1:
                mine.zero_()
            elif rate:
                mine.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
        return x * mask


class Turns(nn.Module):
    """Any other module: calls each network's module in turn, on its samples and with its random number generator.

    Args:
        members: the module of each network, from (N, ...) tensors to one (N, ...) tensor.
        generators: the random number generator of each network.
    """

    def __init__(self, members: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.members, self.generators = tuple(members), tuple(generators)

    def forward(self, *inputs: Tensor) -> Tensor:
        """One network after the other on its own samples, (S N, ...) tensors to (S N, ...)."""
        count = len(self.members)
        outputs = []
        for member, generator, *mine in zip(
            self.members, self.generators, *(x.chunk(count) for x in inputs), strict=True
        ):
            with drawing(generator):
                outputs.append(member(*mine))
        return torch.cat(outputs)


@contextmanager
def drawing(generator: torch.Generator) -> Iterator[None]:
    """In this context a generator replaces the global one of its device."""
    device = generator.device
    usual = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    before = usual.get_state()
    usual.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(usual.get_state())
        usual.set_state(before)
