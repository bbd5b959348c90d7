"""Depthwise convolution with one kernel per group of samples, as a sum of shifted products that a compiler fuses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch.nn.functional as F
from torch import Tensor


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
