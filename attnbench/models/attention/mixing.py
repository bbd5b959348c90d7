"""A convolution with K kernels that are mixed for every sample, as in dynamic and conditional convolution.

    y_n = (sum_k pi_nk W_k) * x_n

A stock convolution has one kernel for the whole batch. So this one is computed in one of four ways, all of them equal
to the equation:

    stacked   y = concat_k(W_k) * concat_k(pi_k x): one stock convolution over K C_in channels. It has K times the
              products, but needs no kernel per sample: best if the map is small compared with the kernel.
    matrices  for 1x1 convolutions: mix a matrix per sample, then use a batched matrix product.
    grouped   mix a kernel per sample, then use one convolution with the samples as groups.
    stencil   for depthwise convolutions under torch.compile, which fuses it: shifted maps times mixed weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        """The fastest of the four ways for an input of this shape."""
        if self.depthwise:
            return stencil if torch.compiler.is_compiling() else grouped
        if x.shape[0] == 1:
            return grouped
        positions = x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        if positions < SMALL_MAP.get(x.device.type, 128):
            return stacked
        return matrices if self.pointwise else grouped if x.is_cpu else stacked

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
    parts = x.unflatten(1, (conv.groups, 1, -1)) * mixture[:, None, :, None, None, None]
    weight = conv.kernels.transpose(0, 1).flatten(1, 2)
    return F.conv2d(parts.flatten(1, 3), weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def matrices(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """W_n x_n for a 1x1 convolution, in the memory format of x."""
    x = x[:, :, :: conv.stride[0], :: conv.stride[1]]
    weight = conv.mixed(mixture).flatten(2)
    if x.is_contiguous(memory_format=torch.channels_last):
        return (x.flatten(2).mT @ weight.mT).mT.unflatten(2, x.shape[2:])
    return (weight @ x.flatten(2)).unflatten(2, x.shape[2:])


def grouped(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """W_n * x_n with the samples as groups of one convolution."""
    samples, weight = x.shape[0], conv.mixed(mixture).flatten(0, 1)
    concatenated = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(concatenated, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups * samples)
    return y.view(samples, -1, *y.shape[2:])


def stencil(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """sum_ij w_n[:, i, j] x_n shifted by (i, j), for a depthwise convolution."""
    weight = conv.mixed(mixture).squeeze(2).unflatten(1, (conv.groups, -1))
    pad_y, pad_x = (int(p) for p in conv.padding)
    return depthwise.stencil(x, weight, conv.stride, (pad_y, pad_x), conv.dilation)
