"""Dynamic convolution: y = (sum_k pi_k(x) W_k) * x, pi a softmax with temperature (arXiv:1912.03458)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, NonNegative, Positive, checked
from attnbench.models import deferred
from attnbench.models.attention.branch import Branch
from attnbench.models.attention.convolution import dense_or_grouped
from attnbench.models.attention.mixing import MixedConv2d
from attnbench.models.insertion import Replacement, Site


class DynamicConvolution(Replacement):
    """y = (sum_k pi_k(x) W_k) * x,  pi(x) = softmax(BN(W2 relu(BN(W1 gap(x) + b1)) + b2) / temperature).

    (N, C_in, H, W) to (N, C, H', W'); replaces a convolution.

    The temperature falls linearly from its initial to its final value over ``annealing_epochs`` (0 keeps it constant).
    It is not part of the state dict; the training loop updates it with ``set_progress``.
    """

    def __init__(
        self,
        trunk: nn.Conv2d,
        *,
        kernels: int,
        hidden: int,
        temperature: float,
        temperature_final: float,
        annealing_epochs: float,
    ) -> None:
        super().__init__()
        self.branch = Branch(trunk.in_channels, hidden, kernels, gate="none", norm=True, bias=True)
        self.conv = MixedConv2d(trunk, kernels)
        self.temperatures = (temperature, temperature_final)
        self.annealing_epochs = annealing_epochs
        self.set_progress(0.0)

    def set_progress(self, epoch: float) -> None:
        """Set the temperature for a point in training, given in epochs (2.5 is the middle of the third epoch)."""
        first, final = self.temperatures
        done = min(1.0, epoch / self.annealing_epochs) if self.annealing_epochs else 0.0
        self.temperature = first + (final - first) * done

    def forward(self, x: Tensor) -> Tensor:
        """The mixed convolution of x, (N, C_in, H, W) to (N, C, H', W')."""
        logits = self.branch(x).flatten(1)
        y = self.conv(x, torch.softmax(logits / self.temperature, dim=1))
        return deferred.for_norm(y, self.inner) if self.joined else y


@checked
def dyconv(
    site: Site,
    *,
    kernels: Count = 4,
    reduction: Count = 4,
    temperature: Positive = 30.0,
    temperature_final: Positive = 1.0,
    annealing_epochs: NonNegative = 0.0,
) -> nn.Module:
    """Replaces a site's convolution by DyConv.

    The SB paper keeps temperature 30; the original anneals it from 30 to 1 over the first 10 epochs.

    Args:
        kernels: K.
        reduction: the branch's hidden layer has C_in // reduction units.
        temperature: initial temperature of the softmax.
        temperature_final: temperature after ``annealing_epochs``.
        annealing_epochs: number of epochs over which the temperature falls; 0 keeps it constant.

    Raises:
        ConfigError: the site's trunk is not a stock convolution.
    """
    return DynamicConvolution(
        dense_or_grouped(site, "dyconv"),
        kernels=kernels,
        hidden=max(1, site.in_channels // reduction),
        temperature=temperature,
        temperature_final=temperature_final,
        annealing_epochs=annealing_epochs,
    )
