"""Depthwise convolution with kernels for each sample or group of samples.

``stencil`` is a sum of shifted products, which a compiler fuses. ``per_sample`` is for eager execution on a CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from attnbench.models.ops.c_library import Library

LIBRARY = Library("depthwise.c", instead="depthwise convolutions with mixed kernels copy their kernels")


def stencil(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """y_n = sum_ij w_g[:, i, j] x_n shifted by (i, j), where sample n of N is in group g = n G // N.

    Args:
        x: (N, C, H, W).
        weight: (G, C, M, h, w): M kernels per channel, for each group of samples.
        stride, padding, dilation: of rows and columns.

    Returns:
        (N, C M, H', W'); the M results of a channel are adjacent.
    """
    pad_y, pad_x = padding
    x = F.pad(x, (pad_x, pad_x, pad_y, pad_y)).unflatten(0, (len(weight), -1)).unsqueeze(3)  # (G, N / G, C, 1, H, W)
    weight = weight[:, None, ..., None, None]
    size = weight.shape[4:6]
    taps = product(*map(range, size))
    y = sum(weight[..., i, j, :, :] * _shifted(x, (i, j), size, stride, dilation) for i, j in taps)
    assert isinstance(y, Tensor)
    return y.flatten(2, 3).flatten(0, 1)


def _shifted(
    x: Tensor, tap: tuple[int, int], size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The values of a padded map that one tap of the kernel multiplies, for every position of the output."""
    rows, columns = (
        slice(at * step, length - (kernel - 1 - at) * step, pace)
        for at, length, kernel, pace, step in zip(tap, x.shape[-2:], size, stride, dilation, strict=True)
    )
    return x[..., rows, columns]


class _Shape(ctypes.Structure):
    """``struct shape`` of depthwise.c."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("samples", "channels", "height", "width", "out_height", "out_width", "rows", "columns"),
            *("stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x"),
        )
    ]


def per_sample(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The convolution of each sample with its own kernels, by kernels in C.

    Args:
        x: (N, C, H, W), which ``LIBRARY`` takes.
        weight: (N, h, w, C), of x's dtype.
        stride, padding, dilation: of rows and columns.

    Returns:
        (N, C, H', W').
    """
    y: Tensor = _PerSample.apply(x, weight, (*stride, *padding, *dilation))
    return y


class _PerSample(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, convolution: Sequence[int]) -> Tensor:
        weight = weight.contiguous()
        n, c, h, w = x.shape
        rows, columns = weight.shape[1:3]
        stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x = convolution
        height = (h + 2 * pad_y - dilation_y * (rows - 1) - 1) // stride_y + 1
        width = (w + 2 * pad_x - dilation_x * (columns - 1) - 1) // stride_x + 1
        ctx.shape = _Shape(n, c, h, w, height, width, rows, columns, *convolution)
        ctx.save_for_backward(x, weight)
        y = torch.empty((n, c, height, width), dtype=x.dtype, memory_format=torch.channels_last)
        LIBRARY.call("forward", x.dtype, x, weight, y, ctx.shape)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        LIBRARY.call("backward", x.dtype, x, weight, dy, dx, dw, ctx.shape)
        return dx, dw, None
