"""Layer-wise SE: y = T(x) * sigmoid(F(x)), scaled attention (SB paper, arXiv:2103.13080, equation 1)."""

from __future__ import annotations

from torch import nn

from attnbench.config.options import Count, DropoutPlace, Fraction, Gate, checked
from attnbench.models.attention.branch import Branch
from attnbench.models.attention.sb import hidden_units
from attnbench.models.insertion import Attended, Site


@checked
def se_layer(
    site: Site,
    *,
    gate: Gate = "sigmoid",
    hidden: Count = 1,
    dropout: Fraction = 0.0,
    dropout_at: DropoutPlace = "hidden",
) -> nn.Module:
    """Layer-wise SE: its gate is computed from the input of a site and scales the site's output.

    F is the branch of SB, without lambda.

    Args:
        gate: the function on the branch's output; the paper reports that tanh and others fail.
        hidden: multiplies the hidden layer's width.
        dropout: probability in the hidden layer.
        dropout_at: as in SB.
    """
    branch = Branch(
        site.in_channels,
        hidden_units(site, hidden),
        site.out_channels,
        gate=gate,
        norm=True,
        dropout=dropout,
        dropout_at=dropout_at,
    )
    return Attended(site.trunk, branch, reads="input", combine="mul")
