"""K convolution kernels, mixed for every sample: what dynamic and conditional convolution share.

    y_n = (sum_k pi_nk W_k) * x_n

A library's convolution has one kernel for the whole batch, so the product is taken in one of four ways, all
equal to the equation:

    stacked   y = concat_k(W_k) * concat_k(pi_k x): one stock convolution over K C_in channels, K times the
              products but no kernel for each sample. Best where the map is small beside the kernel.
    matrices  for 1x1 convolutions: mix a matrix for each sample, then a batched product.
    grouped   mix a kernel for each sample, then one convolution whose groups are the samples.
    stencil   for depthwise ones under torch.compile, which fuses it: shifted maps times mixed weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.models.ops import depthwise

# Places of a map below which K copies of it cost less than a kernel for each sample: measured on a CPU, whose
# products are dear, and reckoned from bytes and products for a GPU (where cuDNN is slow at many groups, too).
SMALL_MAP = {"cpu": 32, "cuda": 128}


class MixedConv2d(nn.Module):
    """y_n = (sum_k pi_nk W_k) * x_n + sum_k pi_nk b_k, in the place of a convolution.

    (N, C_in, H, W) and mixtures pi (N, K) to (N, C, H', W'), shaped as the trunk's.
    Kernel 0 is the trunk's own, the others are drawn normal with its standard deviation.

    Args:
        trunk: the convolution.
        kernels: K.
    """

    def __init__(self, trunk: nn.Conv2d, kernels: int) -> None:
        super().__init__()
        # Four dimensions, K C filters, because Module.to(memory_format=channels_last) refuses five.
        self.weight = nn.Parameter(multiplied(trunk.weight, kernels).flatten(0, 1))
        self.count = kernels
        self.bias = None if trunk.bias is None else nn.Parameter(multiplied(trunk.bias, kernels))
        self.stride, self.dilation, self.groups = trunk.stride, trunk.dilation, trunk.groups
        self.padding = trunk.padding

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """The convolution of x by each sample's own kernel.

        Args:
            x: (N, C_in, H, W).
            mixture: pi, (N, K).
        """
        y = self.route(x)(self, x, mixture.to(x.dtype))
        return y if self.bias is None else y + (mixture @ self.bias)[:, :, None, None]

    def route(self, x: Tensor) -> Callable[[MixedConv2d, Tensor, Tensor], Tensor]:
        """The way that is fastest for an input of this shape."""
        if self.depthwise:
            return stencil if torch.compiler.is_compiling() else grouped
        if x.shape[0] == 1:
            return grouped
        places = x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        if places < SMALL_MAP.get(x.device.type, 128):
            return stacked
        return matrices if self.pointwise else grouped if x.is_cpu else stacked

    @property
    def depthwise(self) -> bool:
        """Whether each filter reads a single channel, with padding in numbers."""
        return self.groups > 1 and self.weight.shape[1] == 1 and not isinstance(self.padding, str)

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1x1 convolution without padding or groups."""
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
    """(K, ...) with the value itself first and K - 1 others as widely spread around zero."""
    value = value.detach()
    others = [torch.randn_like(value) * value.std(correction=0) for _ in range(kernels - 1)]
    return torch.stack([value, *others])


def stacked(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """concat_k(W_k) * concat_k(pi_k x), the K copies side by side within each group."""
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
    side_by_side = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(side_by_side, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups * samples)
    return y.view(samples, -1, *y.shape[2:])


def stencil(conv: MixedConv2d, x: Tensor, mixture: Tensor) -> Tensor:
    """sum_ij w_n[:, i, j] x_n shifted by (i, j), for a depthwise convolution."""
    weight = conv.mixed(mixture).squeeze(2).unflatten(1, (conv.groups, -1))
    pad_y, pad_x = (int(p) for p in conv.padding)
    return depthwise.stencil(x, weight, conv.stride, (pad_y, pad_x), conv.dilation)
