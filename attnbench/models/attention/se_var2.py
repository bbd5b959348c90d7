"""SE-Var2: y = T(x) * sigmoid(w o gap(T(x))), C weights (ECA paper, arXiv:1910.03151, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import checked
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class ChannelwiseGate(PooledAttention):
    """a = sigmoid(w o gap(x)) with one weight per channel and no bias: each gate depends on its own channel only.

    (N, C, H, W) to a signal (N, C, 1, 1). The initial weights are uniform in [-1, 1], like those of a depthwise
    convolution, which is what the paper calls this.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))

    def signal(self, pooled: Tensor) -> Tensor:
        """The sigmoid of each channel's weighted mean, (N, C) to (N, C)."""
        return torch.sigmoid(self.weight * pooled)


@checked
def se_var2(site: Site) -> nn.Module:
    """SE-Var2 on the output of a site."""
    return Attended(site.trunk, ChannelwiseGate(site.out_channels), reads="output", combine="mul")
