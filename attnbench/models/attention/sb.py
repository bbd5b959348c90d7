"""Shift-and-Balance: y = T(x) + lambda * tanh(F(x)) (arXiv:2103.13080, equations 6 and 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, DropoutPlace, Fraction, Gate, NonNegative, checked
from attnbench.models.attention.branch import Branch
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class ShiftAndBalance(PooledAttention):
    """a = lambda * A(x),  A(x) = gate(BN(W2 relu(BN(W1 gap(x))))), with a learned lambda per output channel.

    (N, C_in, H, W) to a signal (N, C_out, 1, 1). With tanh the output of the layer stays within T(x) +- lambda.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        lambda_init: float,
        gate: Gate,
        dropout: float,
        dropout_at: DropoutPlace = "hidden",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"norm": True, "dropout": dropout, "dropout_at": dropout_at}
        self.branch = Branch(in_channels, hidden, out_channels, gate=gate, **options)
        self.lambda_ = nn.Parameter(torch.full((out_channels, 1, 1), lambda_init))

    def signal(self, pooled: Tensor) -> Tensor:
        """The shift of each channel, lambda times the gated branch, (N, C_in) to (N, C_out)."""
        return self.lambda_.flatten() * self.branch.signal(pooled)

    def gauges(self) -> dict[str, Tensor]:
        """The values that a run records each epoch."""
        return {"lambda": self.lambda_}


def hidden_units(site: Site, multiplier: int) -> int:
    """The SB paper's hidden width: the output channels, divided by 6 at the depthwise layer of a 6x block."""
    divisor = site.expansion if site.role == "depthwise" else 1
    return max(1, site.out_channels // divisor) * multiplier


@checked
def sb(
    site: Site,
    *,
    lambda_init: NonNegative = 0.1,
    gate: Gate = "tanh",
    hidden: Count = 1,
    dropout: Fraction = 0.0,
    dropout_at: DropoutPlace = "hidden",
) -> nn.Module:
    """SB: its signal is computed from the input of a site and added to the site's output.

    Args:
        lambda_init: initial lambda (Table 8 tries 0.01 to 1).
        gate: the function on the branch's output (Table 9).
        hidden: multiplies the hidden layer's width (Table 10).
        dropout: probability in the hidden layer (Table 7 tries 0.2).
        dropout_at: ``hidden``: after the hidden layer's ReLU; ``linear``: before its norm; ``input``: on the pooled
            input.
    """
    signal = ShiftAndBalance(
        site.in_channels,
        hidden_units(site, hidden),
        site.out_channels,
        lambda_init=lambda_init,
        gate=gate,
        dropout=dropout,
        dropout_at=dropout_at,
    )
    return Attended(site.trunk, signal, reads="input", combine="add")
