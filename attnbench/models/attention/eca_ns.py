"""ECA without shared weights: y = T(x) * sigmoid(omega) (ECA paper, arXiv:1910.03151, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.config.options import OddInt, checked
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class LocalGate(PooledAttention):
    """a_i = sigmoid(sum_j alpha_ij y_i+j), y = gap(x), with j over the k neighbours centred on channel i.

    (N, C, H, W) to a signal (N, C, 1, 1). Each channel has k weights and no bias. Neighbours before the first and after
    the last channel are zero, as in ECA.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        bound = kernel_size**-0.5  # as for ECA's convolution, which has the same fan-in
        self.weight = nn.Parameter(torch.empty(channels, kernel_size).uniform_(-bound, bound))
        self.kernel_size = kernel_size

    def signal(self, pooled: Tensor) -> Tensor:
        """The gate of each channel from its k neighbours, with separate weights, (N, C) to (N, C) in [0, 1]."""
        neighbours = F.pad(pooled, [self.kernel_size // 2] * 2).unfold(1, self.kernel_size, 1)
        return torch.sigmoid((self.weight * neighbours).sum(2))


@checked
def eca_ns(site: Site, *, kernel_size: OddInt = 3) -> nn.Module:
    """ECA-NS on the output of a site.

    Args:
        kernel_size: k, the number of channels that each gate depends on.
    """
    return Attended(site.trunk, LocalGate(site.out_channels, kernel_size), reads="output", combine="mul")
