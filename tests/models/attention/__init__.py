"""Small sites, built by hand, for the tests of attention modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from attnbench.models.insertion import Site


def block_site(channels: int, trunk: nn.Module | None = None, **fields: Any) -> Site:
    """A block's output; the identity as trunk shows the attention alone."""
    given: dict[str, Any] = {"role": "block", "stage": 1, "stages": 4, "width": channels} | fields
    return Site("block", trunk or nn.Identity(), channels, channels, **given)


def layer_site(conv: nn.Conv2d, **fields: Any) -> Site:
    """A convolution of a block."""
    given: dict[str, Any] = {"role": "conv2", "stage": 1, "stages": 4, "width": conv.out_channels} | fields
    return Site("layer", conv, conv.in_channels, conv.out_channels, **given)
