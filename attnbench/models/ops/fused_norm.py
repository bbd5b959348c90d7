"""Batch norm and channel attention as one affine map of a feature map z, with a scale and a shift per (n, c).

Batch norm is u = a z + b with a and b per channel. With attention that depends on gap(u), the output is y = A z + B
with A and B per sample and channel. As gap(u) = a gap(z) + b, attention needs only moments of z, which batch norm
computes anyway. All of this is in plain operations, which a compiler fuses; ``fused_norm_kernels`` is for eager
execution.
"""

from __future__ import annotations

from typing import Any, TypeGuard

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
    mean, var, _ = batch_statistics(m, v, norm, positions)
    a = norm.weight * torch.rsqrt(var + norm.eps)
    return a, norm.bias - a * mean


def batch_statistics(m: Tensor, v: Tensor, norm: Norm, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of the batch, (C,) each, and its number of samples; updates the running statistics.

    Args:
        m, v: mean and biased variance of each map, (N, C).
        positions: H W.
    """
    samples = over_processes(m.new_tensor(len(m)), norm)
    mean = over_processes(m.sum(0), norm) / samples
    # By the law of total variance, which subtracts no large numbers from each other.
    var = over_processes((v + (m - mean).square()).sum(0), norm) / samples
    _update_running(norm, mean, var, samples * positions)
    return mean, var, samples


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


def over_processes(x: Tensor, norm: Norm) -> Tensor:
    """The sum over the processes that share a norm's statistics."""
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized():
        summed: Tensor = _Sum.apply(x, norm.process_group)
        return summed
    return x


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
