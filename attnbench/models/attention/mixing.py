"""A convolution with K kernels that are mixed for every sample, as in dynamic and conditional convolution.

    y_n = (sum_k pi_nk W_k) * x_n

A stock convolution has one kernel for the whole batch. So this one is computed in one of five ways, all of them equal
to the equation:

    stacked   y = concat_k(W_k) * concat_k(pi_k x): one stock convolution over K C_in channels. It has K times the
              products, but needs no kernel per sample: best if the map is small compared with the kernel.
    matrices  for 1x1 convolutions: mix a matrix per sample, then use a batched matrix product.
    grouped   mix a kernel per sample, then use one convolution with the samples as groups.
    per_sample  for depthwise convolutions on a CPU: kernels in C, for maps in channels_last.
    stencil   for depthwise convolutions under torch.compile, which fuses it: shifted maps times mixed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from attnbench.models.ops import depthwise

# Positions of a map below which K copies of it cost less than a kernel per sample. Measured on a CPU, where products
# are expensive; estimated from bytes and products for a GPU, where cuDNN is also slow with many groups.
SMALL_MAP = {"cpu": 32, "cuda": 128}


class MixedConv2d(nn.Module):
    """y_n = (sum_k pi_nk W_k) * x_n + sum_k pi_nk b_k; replaces a convolution.

    (N, C_in, H, W) and mixtures pi (N, K) to (N, C, H', W'), the output shape of the trunk.
    Kernel 0 is the trunk's; the others are drawn from a normal distribution with its standard deviation.

    Args:
        trunk: the convolution.
        kernels: K.
    """

    def __init__(self, trunk: nn.Conv2d, kernels: int) -> None:
        super().__init__()
        # As K C filters, in four dimensions: Module.to(memory_format=channels_last) refuses five.
        self.weight = nn.Parameter(multiplied(trunk.weight, kernels).flatten(0, 1))
        self.count = kernels
        self.bias = None if trunk.bias is None else nn.Parameter(multiplied(trunk.bias, kernels))
        self.stride, self.dilation, self.groups = trunk.stride, trunk.dilation, trunk.groups
        self.padding = trunk.padding

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """The convolution of each sample with its own mixed kernel.

        Args:
            x: (N, C_in, H, W).
            mixture: pi, (N, K).
        """
        y = self.route(x)(self, x, mixture.to(x.dtype))
        return y if self.bias is None else y + (mixture @ self.bias)[:, :, None, None]

    def route(self, x: Tensor) -> Callable[[MixedConv2d, Tensor, Tensor], Tensor]:
        """The fastest of the five ways for an input of this shape."""
        if self.depthwise:
            return self._depthwise_route(x)
        if x.shape[0] == 1:
            return grouped
        positions = x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        if positions < SMALL_MAP.get(x.device.type, 128):
            return stacked
        return matrices if self.pointwise else grouped if x.is_cpu else stacked

    def _depthwise_route(self, x: Tensor) -> Callable[[MixedConv2d, Tensor, Tensor], Tensor]:
        if torch.compiler.is_compiling():
            return stencil
        same = self.weight.shape[0] == self.count * self.groups  # not several filters for a channel
        return per_sample if same and depthwise.LIBRARY.takes(x) else grouped

    @property
    def depthwise(self) -> bool:
        """Whether each filter reads a single channel, and the padding is given in numbers."""
        return self.groups > 1 and self.weight.shape[1] == 1 and not isinstance(self.padding, str)

    @property
    def pointwise(self) -> bool:
        """Whether this is a 1x1 convolution without padding or groups."""
        unpadded = self.padding in ((0, 0), "same", "valid")
        return self.groups == 1 and self.weight.shape[2:] == (1, 1) and unpadded

    @property
    def kernels(self) -> Tensor:
        """W, (K, C, C_in / groups, h, w)."""
        return self.weight.unflatten(0, (self.count, -1))

    def mixed(self, mixture: Tensor) -> Tensor:
        """sum_k pi_nk W_k, a kernel for each sample: (N, C, C_in / groups, h, w)."""
        return (mixture @ self.kernels.flatten(1)).unflatten(1, self.kernels.shape[1:])

    def extra_repr(self) -> str:
        """What ``print(model)`` shows: the kernels' shape (K, C, C_in / groups, h, w), stride, padding, groups."""
        shape = "x".join(map(str, self.kernels.shape))
        return f"{shape}, stride={self.stride}, padding={self.padding}, groups={self.groups}"


def multiplied(value: Tensor, kernels: int) -> Tensor:
    """(K, ...): the value itself, then K - 1 samples of a normal distribution with its standard deviation."""
    value = value.detach()
    others = [torch.randn_like(value) * value.std(correction=0) for _ in range(kernels - 1)]
    return torch.stack([value, *others])


def stacked(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """concat_k(W_k) * concat_k(pi_k x), with the K copies concatenated within each group."""
    # With channels last, so that the copies keep the memory format of x.
    parts = x.movedim(1, -1).unflatten(-1, (conv.groups, 1, -1)) * mixture[:, None, None, None, :, None]
    weight = conv.kernels.transpose(0, 1).flatten(1, 2)
    parts = parts.flatten(3, 5).movedim(-1, 1)
    return F.conv2d(parts, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def matrices(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """W_n x_n for a 1x1 convolution, in the memory format of x."""
    x = x[:, :, :: conv.stride[0], :: conv.stride[1]]
    if not x.is_contiguous(memory_format=torch.channels_last):
        return (conv.mixed(mixture).flatten(2) @ x.flatten(2)).unflatten(2, x.shape[2:])
    kernels, rows = conv.kernels.flatten(2), x.flatten(2).mT  # (K, C, C_in), (N, H W, C_in)
    if kernels.shape[1] > kernels.shape[2]:
        y = rows @ (mixture @ kernels.mT.flatten(1)).unflatten(1, kernels.mT.shape[1:])
    else:
        y = _Product.apply(rows, (mixture @ kernels.flatten(1)).unflatten(1, kernels.shape[1:]))
    return y.mT.unflatten(2, x.shape[2:])


class _Product(Function):
    """x W^T, (N, P, C_in) and (N, C, C_in) to (N, P, C); autograd's gradient of W is up to three times as slow.

    Libraries multiply matrices fastest if the narrow one has few rows and long columns, also in the gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return dy @ weight, dy.mT @ x


def grouped(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """W_n * x_n with the samples as groups of one convolution."""
    samples, weight = x.shape[0], conv.mixed(mixture).flatten(0, 1)
    concatenated = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(concatenated, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups * samples)
    return y.view(samples, -1, *y.shape[2:])


def per_sample(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """w_n * x_n for a depthwise convolution on a CPU."""
    kernels = conv.kernels.squeeze(2).permute(0, 2, 3, 1)  # (K, h, w, C)
    weight = (mixture @ kernels.flatten(1)).unflatten(1, kernels.shape[1:])
    return depthwise.per_sample(x, weight.to(x.dtype), conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]


def stencil(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """sum_ij w_n[:, i, j] x_n shifted by (i, j), for a depthwise convolution."""
    weight = conv.mixed(mixture).squeeze(2).unflatten(1, (conv.groups, -1))
    pad_y, pad_x = (int(p) for p in conv.padding)
    return depthwise.stencil(x, weight, conv.stride, (pad_y, pad_x), conv.dilation)
