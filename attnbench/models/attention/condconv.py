"""Conditionally parameterized convolution: y = (sum_k r_k(x) W_k) * x, r from sigmoids (arXiv:1904.04971)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, checked
from attnbench.models import deferred
from attnbench.models.attention.convolution import dense_or_grouped
from attnbench.models.attention.mixing import MixedConv2d
from attnbench.models.attention.squeeze import Squeeze
from attnbench.models.insertion import Replacement, Site


class ConditionalConvolution(Replacement):
    """y = (sum_k r_k(x) W_k) * x,  r(x) = sigmoid(W gap(x) + b).

    (N, C_in, H, W) to (N, C, H', W'); replaces a convolution.
    """

    def __init__(self, trunk: nn.Conv2d, kernels: int) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        self.routing = nn.Linear(trunk.in_channels, kernels)
        self.conv = MixedConv2d(trunk, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed convolution of x, (N, C_in, H, W) to (N, C, H', W')."""
        y = self.conv(x, torch.sigmoid(self.routing(self.squeeze(x))))
        return deferred.for_norm(y, self.inner) if self.joined else y


@checked
def condconv(site: Site, *, kernels: Count = 8) -> nn.Module:
    """Replaces a site's convolution by CondConv.

    Args:
        kernels: K, the number of experts in the paper.

    Raises:
        ConfigError: the site's trunk is not a stock convolution.
    """
    return ConditionalConvolution(dense_or_grouped(site, "condconv"), kernels)
