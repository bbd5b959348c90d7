"""Squeeze-and-Excitation: y = T(x) * sigmoid(W2 relu(W1 gap(T(x)))) (Hu et al., arXiv:1709.01507)."""

from __future__ import annotations

from torch import nn

from attnbench.config.options import Count, Gate, checked
from attnbench.models.attention.branch import Branch
from attnbench.models.insertion import Attended, Site


@checked
def se(
    site: Site,
    *,
    reduction: Count = 16,
    hidden: Count | None = None,
    bias: bool = False,
    norm: bool = False,
    gate: Gate = "sigmoid",
) -> nn.Module:
    """SE on the output of a site.

    The original SE has biases; the ECA paper's has none, as its 26.77 M parameters for ResNet-50 show.

    Args:
        reduction: r; the hidden layer has C // r units.
        hidden: units of the hidden layer, instead of ``reduction``.
        bias: biases in both layers.
        norm: batch norm after both layers, as in the SB paper.
        gate: the function on the branch's output.
    """
    channels = site.out_channels
    units = hidden or max(1, channels // reduction)
    branch = Branch(channels, units, channels, gate=gate, norm=norm, bias=bias)
    return Attended(site.trunk, branch, reads="output", combine="mul")
