"""What methods ask of a site whose convolution they take the place of."""

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
    # A subclass may pad or scale in a forward of its own, which would be lost.
    if type(trunk) is not nn.Conv2d or trunk.padding_mode != "zeros":
        roles = "layer, conv1, conv2, conv3, expand, depthwise or project"
        raise refusal(site, method, f"a convolution: {roles}, with placement.wrap=conv")
    return trunk


def dense(site: Site, method: str) -> nn.Conv2d:
    """The site's stock convolution, ungrouped and keeping the map's size but for its stride.

    Raises:
        ConfigError: as ``dense_or_grouped``, and for grouped, unpadded and depthwise convolutions.
    """
    conv = dense_or_grouped(site, method)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.groups > 1 or [2 * int(p) for p in conv.padding] != reach:
        raise refusal(site, method, "a dense, padded convolution: conv1, conv2, conv3, expand or project")
    return conv


def refusal(site: Site, method: str, roles: str) -> ConfigError:
    """An attention that cannot stand at a role."""
    at = f"{method} cannot stand at {site.path}, a {type(site.trunk).__name__} in the role {site.role}"
    return ConfigError(at, "placement.roles", f"it takes the place of {roles}")
