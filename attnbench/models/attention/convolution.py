"""Checks of a site's trunk, for methods that replace a convolution."""

from __future__ import annotations

from torch import nn

from attnbench.base.errors import ConfigError
from attnbench.models.insertion import Site


def dense_or_grouped(site: Site, method: str) -> nn.Conv2d:
    """The site's stock convolution, of any kernel, stride, dilation and groups.

    Raises:
        ConfigError: the trunk is something else, such as a norm or a convolution with its norm.
    """
    trunk = site.trunk
    # A subclass may override forward, to pad or scale for example; that would be lost.
    if type(trunk) is not nn.Conv2d or trunk.padding_mode != "zeros":
        roles = "layer, conv1, conv2, conv3, expand, depthwise or project"
        raise refusal(site, method, f"choose a convolution: {roles}, with placement.wrap=conv")
    return trunk


def dense(site: Site, method: str) -> nn.Conv2d:
    """The site's stock convolution, if it has no groups and only its stride changes the size of the map.

    Raises:
        ConfigError: as in ``dense_or_grouped``; also if the convolution is grouped, depthwise or not padded.
    """
    conv = dense_or_grouped(site, method)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.groups > 1 or [2 * int(p) for p in conv.padding] != reach:
        roles = "conv1, conv2, conv3, expand or project"
        raise refusal(site, method, f"choose a dense, padded convolution: {roles}")
    return conv


def refusal(site: Site, method: str, todo: str) -> ConfigError:
    """The error for a method that cannot be used at a site."""
    what = f"{method} cannot be used at {site.path}, a {type(site.trunk).__name__} in the role {site.role}"
    return ConfigError(what, "placement.roles", todo)
