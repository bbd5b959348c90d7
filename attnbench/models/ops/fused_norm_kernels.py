"""Batch norm with attention for eager execution: the passes of the fused norm by kernels, with their gradients.

In eager execution every operation is a pass over a map. Kernels make two passes for y = A z + B, the moments of z and
y, and two for its gradient. With dA and dB, the sums of dy z and of dy over each map, and the gradients dm and dv of
the moments,

    dz = A dy + dm / P + 2 dv (z - m) / P,  P = H W.

The (N, C) numbers between these passes are computed in ordinary operations. Kernels are in C for a CPU and in Triton
for a GPU.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from attnbench.models.ops import fused_norm_c
from attnbench.models.ops.fused_norm import Norm, batch_statistics, over_processes

log = logging.getLogger("attnbench")


class Kernels(Protocol):
    """The passes over maps (N, C, H, W); coefficients and sums are (N, C). None of them is differentiable."""

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each map."""

    def sums(self, z: Tensor) -> Tensor:
        """The sum of each map."""

    def apply(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """A z + B in z's precision."""

    def reduce(self, dy: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of dy z and of dy over each map."""

    def back(self, dy: Tensor, z: Tensor, a: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        """A dy + slope z + offset in z's precision."""


def kernels(z: Tensor) -> Kernels | None:
    """The kernels that can be used for a map; None if there are none for its device, precision or memory format."""
    if torch.compiler.is_compiling():
        return None
    return _triton() if z.is_cuda else fused_norm_c if fused_norm_c.LIBRARY.takes(z) else None


@cache
def _triton() -> Kernels | None:
    """The CUDA kernels; None, with a log line, if Triton is not installed."""
    try:
        from attnbench.models.ops import fused_norm_triton
    except ImportError:
        log.info("Triton is not installed: attention uses its reference implementation")
        return None
    return fused_norm_triton


def pool(x: Tensor) -> Tensor:
    """gap(x) in x's precision, (N, C, H, W) to (N, C)."""
    if fused_norm_c.LIBRARY.takes(x):
        pooled: Tensor = _Pooled.apply(x)
        return pooled
    # Not x.mean: its gradient is a full tensor in another memory format than x, which later operations take over.
    summed = x.sum((2, 3), dtype=torch.float32 if x.dtype == torch.float16 else None)  # float16 ends at 65,504
    return (summed / (x.shape[2] * x.shape[3])).to(x.dtype)


class _Pooled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.positions = x.shape, x.shape[2] * x.shape[3]
        return (fused_norm_c.sums(x) / ctx.positions).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpooled: Tensor) -> Tensor:
        return (dpooled / ctx.positions)[:, :, None, None].expand(ctx.shape)


class Pair:
    """The moments of z and the affine map, as two differentiable functions that share A.

    ``moments`` returns z, to be used only by ``applied``, with m and v. The caller computes A and B from m and v in
    ordinary operations.
    """

    a: Tensor

    def __init__(self, by: Kernels) -> None:
        self.by = by

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (N, C, H, W), and mean and biased variance of each map (N, C)."""
        same, m, v = _Moments.apply(z, self)
        return same, m, v

    def applied(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """A z + B, A and B (N, C)."""
        y: Tensor = _Applied.apply(z, a, b, self)
        return y


class _Moments(Function):
    """z and its moments; ``_Applied`` passes dy on unscaled, and the backward here computes dz in one pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        m, v = pair.by.moments(z)
        ctx.save_for_backward(z, m)
        ctx.pair = pair
        return z.view_as(z), m, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dm: Tensor, dv: Tensor) -> tuple[Tensor, None]:
        z, m = ctx.saved_tensors
        positions = z.shape[2] * z.shape[3]
        slope = dv * (2 / positions)
        return ctx.pair.by.back(dy, z, ctx.pair.a, slope, dm / positions - slope * m), None


class _Applied(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor, b: Tensor, pair: Pair) -> Tensor:
        pair.a = a.detach()  # with its graph it would be a cycle, which keeps z
        ctx.save_for_backward(z)
        ctx.pair = pair
        return pair.by.apply(z, a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (z,) = ctx.saved_tensors
        return dy, *ctx.pair.by.reduce(dy, z), None


def normalised(z: Tensor, s: Tensor, combine: str, norm: Norm, by: Kernels) -> Tensor:
    """u = BN(z + s) or BN(z s) in training, (N, C, H, W); the signal s is (N, C).

    With y = z + s or z s, and with sums over the M values of a channel in the batch,

        u = w r (y - mean) + b,  r = 1 / sqrt(var + eps)
        db = sum du,  dw = r sum du (y - mean),  dy = w r du + k (y - mean) + d,  k = -w r^2 dw / M,  d = -w r db / M
        dz = dy and ds = sum dy over a map,  or  dz = s dy and ds = sum z dy over a map.
    """
    u: Tensor = _Normalised.apply(z, s, norm.weight, norm.bias, combine == "mul", norm, by)
    return u


class _Normalised(Function):
    """Has its gradient written out, because autograd would call three times as many operations on small tensors."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, s: Tensor, weight: Tensor, bias: Tensor, scaled: bool, norm: Norm, by: Kernels
    ) -> Tensor:
        ctx.scaled, ctx.norm, ctx.by, ctx.positions = scaled, norm, by, z.shape[2] * z.shape[3]
        m, v = by.moments(z)
        over = (m * s, v * s.square()) if scaled else (m + s, v)
        mean, var, ctx.samples = batch_statistics(*over, norm, ctx.positions)
        r = torch.rsqrt(var + norm.eps)
        ctx.save_for_backward(z, s, m, v, weight, mean, r)
        a = weight * r
        b = bias - a * mean
        return by.apply(z, a * s, b.expand_as(s)) if scaled else by.apply(z, a.expand_as(s), a * s + b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
        z, s, m, v, weight, mean, r = ctx.saved_tensors
        products, sums = ctx.by.reduce(du, z)
        db = sums.sum(0)
        dw = r * (s * products - mean * sums if ctx.scaled else products + (s - mean) * sums).sum(0)
        values = ctx.samples * ctx.positions
        a = weight * r
        k = over_processes(dw, ctx.norm) * (-a * r / values)
        d = over_processes(db, ctx.norm) * (-a / values)
        if ctx.scaled:
            d = d - k * mean
            ds = a * products + ctx.positions * (k * s * (v + m.square()) + d * m)
            coefficients = (a * s, k * s.square(), d * s)
        else:
            d = d + k * (s - mean)
            ds = a * sums + ctx.positions * (k * m + d)
            coefficients = (a.expand_as(s), k.expand_as(s), d)
        return ctx.by.back(du, z, *coefficients), ds.to(s.dtype), dw, db, None, None, None
