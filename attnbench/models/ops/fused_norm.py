"""Batch norm and channel attention as one affine map of a feature map z, with a scale and a shift per (n, c).

Batch norm is u = a z + b with a and b per channel. With attention that depends on gap(u), the output is y = A z + B
with A and B per sample and channel. As gap(u) = a gap(z) + b, attention needs only moments of z, which batch norm
computes anyway. `moments`, `coefficients` and `affine` use plain operations, which a compiler fuses. `Pair` is for
eager execution, where every operation is a pass: batch norm is one kernel, and the backward applies the gate and the
gradient of pooling to dy in one pass.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Norm = nn.BatchNorm2d | nn.SyncBatchNorm


def is_plain(norm: nn.Module) -> TypeGuard[Norm]:
    """Whether a module is a batch norm of the usual kind: affine, with running statistics."""
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
    return known and bool(norm.affine) and bool(norm.track_running_stats)


# For a compiler


class _Moments(Function):
    """Mean and variance with one backward pass; autograd's gradient of var_mean reads z once more, for the mean."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        v, m = torch.var_mean(_precise(z), (2, 3), correction=0)
        ctx.save_for_backward(z, m)
        return m, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dm: Tensor, dv: Tensor) -> Tensor:
        z, m = ctx.saved_tensors
        positions = z.shape[2] * z.shape[3]
        slope = dv * (2 / positions)
        return affine(z, slope, dm / positions - slope * m)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map, (N, C, H, W) to (N, C) twice, in float32 or float64."""
    m, v = _Moments.apply(z)
    return m, v


def coefficients(m: Tensor, v: Tensor, norm: Norm, positions: int) -> tuple[Tensor, Tensor]:
    """a and b of batch norm as u = a z + b, (C,) each, from the batch's moments; updates the running statistics.

    Args:
        m, v: mean and biased variance of each map, (N, C).
        positions: H W.
    """
    total = _over_processes(torch.stack([m.sum(0), torch.full_like(m[0], len(m))]), norm)
    count = total[1]
    mean = total[0] / count
    # By the law of total variance, which subtracts no large numbers from each other.
    var = _over_processes((v + (m - mean).square()).sum(0), norm) / count
    _update_running(norm, mean, var, count[0] * positions)
    a = norm.weight * torch.rsqrt(var + norm.eps)
    return a, norm.bias - a * mean


def mean(z: Tensor) -> Tensor:
    """The mean of each map, (N, C, H, W) to (N, C), in float32 or float64."""
    return _precise(z).mean((2, 3))


def running_coefficients(norm: Norm) -> tuple[Tensor, Tensor]:
    """a and b of batch norm as u = a z + b, (C,) each, from the running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    a = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return a, norm.bias - a * norm.running_mean


def peak(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """max(a z + b) over each map, (N, C, H, W) to (N, C): at the largest z or, if a is negative, the smallest."""
    return torch.maximum(a * _precise(z.amax((2, 3))) + b, a * _precise(z.amin((2, 3))) + b)


def affine(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A[n,c] z + B[n,c], rounded once to z's precision."""
    return (scale[:, :, None, None] * z + shift[:, :, None, None]).to(z.dtype)


@torch.no_grad()
def _update_running(norm: Norm, mean: Tensor, var: Tensor, values: Tensor) -> None:
    """Update the running statistics, with the unbiased variance, as ``nn.BatchNorm2d`` does."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((var * (values / (values - 1))).to(norm.running_var.dtype), momentum)


class _Sum(Function):
    """The sum over processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _reduced(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _reduced(dy, ctx.group), None


def _reduced(x: Tensor, group: Any) -> Tensor:
    x = x.clone()
    dist.all_reduce(x, group=group)
    return x


def _over_processes(x: Tensor, norm: Norm) -> Tensor:
    """The sum over the processes that share a norm's statistics."""
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized():
        summed: Tensor = _Sum.apply(x, norm.process_group)
        return summed
    return x


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# For eager execution


def pool(x: Tensor) -> Tensor:
    """gap(x), (N, C, H, W) to (N, C), by a product with a row of ones, many times faster than a mean in bf16."""
    positions = x.shape[2] * x.shape[3]
    # A sum of float16 values may exceed 65,504, so each is first divided by a power of two, which is exact.
    share = 2.0 ** -math.ceil(math.log2(positions)) if x.dtype == torch.float16 else 1.0
    return total(x, share) / (positions * share)


def total(x: Tensor, share: float = 1.0) -> Tensor:
    """The sum over each map times ``share``, (N, C, H, W) to (N, C)."""
    n, c, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.matmul(x.new_full((1, h * w), share), x.permute(0, 2, 3, 1).reshape(n, h * w, c))[:, 0]
    return (x.sum((2, 3), dtype=torch.float32) * share).to(x.dtype) if x.dtype == torch.float16 else x.sum((2, 3))


class Pair:
    """Batch norm and the use of the signal in eager execution, as two functions that share s, a and b.

    ``normalised`` returns u = BN(z) and gap(u), the caller computes the signal s from gap(u), and ``combined`` returns
    u s or u + s.
    """

    s: Tensor  # (N, C, 1, 1)
    a: Tensor  # u = a z + b
    b: Tensor

    def __init__(self, combine: Literal["mul", "add"]) -> None:
        self.combine = combine

    def normalised(self, z: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """u (N, C, H, W), to be used only by ``combined``, and gap(u) (N, C); updates the running statistics."""
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        u, pooled = _Normalised.apply(z, norm.weight, norm.bias, norm, self)
        return u, pooled

    def combined(self, u: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """u s or u + s, (N, C, H, W), written into the memory of u; the signal s is (N, C)."""
        y: Tensor = _Combined.apply(u, s, z.detach(), self)
        return y


class _Normalised(Function):
    """u and gap(u); ``_Combined`` passes dy on, and the backward here applies gate and pooling to it in one pass."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, pair: Pair
    ) -> tuple[Tensor, Tensor]:
        assert norm.momentum is not None
        u, mean, invstd = torch.native_batch_norm(
            z, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(z, weight, norm.running_mean, norm.running_var, mean, invstd)
        ctx.eps, ctx.pair = norm.eps, pair
        pair.a = weight * invstd
        pair.b = bias - pair.a * mean
        return u, pool(u)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dpooled: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, running_mean, running_var, mean, invstd = ctx.saved_tensors
        spread = (dpooled / (z.shape[2] * z.shape[3])).to(dy.dtype)[:, :, None, None]
        du = torch.addcmul(spread, dy, ctx.pair.s) if ctx.pair.combine == "mul" else spread + dy
        grads = torch.ops.aten.native_batch_norm_backward(
            du, z, weight, running_mean, running_var, mean, invstd, True, ctx.eps, [True, True, True]
        )
        return (*grads, None, None)


class _Combined(Function):
    """u s or u + s, which overwrites u: the gradients use u = a z + b, so only z is kept."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, s: Tensor, z: Tensor, pair: Pair) -> Tensor:
        pair.s = s.to(u.dtype)[:, :, None, None]
        ctx.mark_dirty(u)
        ctx.save_for_backward(z)
        ctx.pair, ctx.dtype = pair, s.dtype
        return u.mul_(pair.s) if pair.combine == "mul" else u.add_(pair.s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        ds = total(dy)
        if ctx.pair.combine == "mul":
            ds = ctx.pair.a * total(dy * z) + ctx.pair.b * ds
        return dy, ds.to(ctx.dtype), None, None
