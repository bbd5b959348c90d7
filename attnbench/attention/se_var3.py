"""SE-Var3: y = T(x) * sigmoid(W gap(T(x))), C^2 weights (ECA paper, arXiv:1910.03151, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.attention.squeeze import Squeeze
from attnbench.insertion import Attended, Site
from attnbench.options import checked


class FullGate(nn.Module):
    """a = sigmoid(W gap(x)) with one C x C layer: every gate sees every channel, no reduction, no bias.

    (N, C, H, W) to a signal (N, C, 1, 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        self.mix = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.mix(self.squeeze(x)))[:, :, None, None]


@checked
def se_var3(site: Site) -> nn.Module:
    """SE-Var3 on the output of a site."""
    return Attended(site.trunk, FullGate(site.out_channels), reads="output", combine="mul")
