"""SE-Var3: y = T(x) * sigmoid(W gap(T(x))), C^2 weights (ECA paper, arXiv:1910.03151, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import checked
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class FullGate(PooledAttention):
    """a = sigmoid(W gap(x)) with one C x C layer, no reduction and no bias: every gate depends on every channel.

    (N, C, H, W) to a signal (N, C, 1, 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels, bias=False)

    def signal(self, pooled: Tensor) -> Tensor:
        """The gate of each channel from all of them, (N, C) to (N, C) in [0, 1]."""
        return torch.sigmoid(self.mix(pooled))


@checked
def se_var3(site: Site) -> nn.Module:
    """SE-Var3 on the output of a site."""
    return Attended(site.trunk, FullGate(site.out_channels), reads="output", combine="mul")
