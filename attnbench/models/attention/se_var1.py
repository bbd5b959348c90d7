"""SE-Var1: y = T(x) * sigmoid(gap(T(x))), no parameters (ECA paper, arXiv:1910.03151, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import checked
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class BareGate(PooledAttention):
    """a = sigmoid(gap(x)), (N, C, H, W) to a signal (N, C, 1, 1)."""

    def signal(self, pooled: Tensor) -> Tensor:
        """The sigmoid of each channel's mean, (N, C) to (N, C)."""
        return torch.sigmoid(pooled)


@checked
def se_var1(site: Site) -> nn.Module:
    """SE-Var1 on the output of a site."""
    return Attended(site.trunk, BareGate(), reads="output", combine="mul")
