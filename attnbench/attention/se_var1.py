"""SE-Var1: y = T(x) * sigmoid(gap(T(x))), no parameters (ECA paper, arXiv:1910.03151, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.attention.squeeze import Squeeze
from attnbench.insertion import Attended, Site
from attnbench.options import checked


class BareGate(nn.Module):
    """a = sigmoid(gap(x)), (N, C, H, W) to a signal (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.squeeze(x))[:, :, None, None]


@checked
def se_var1(site: Site) -> nn.Module:
    """SE-Var1 on the output of a site."""
    return Attended(site.trunk, BareGate(), reads="output", combine="mul")
