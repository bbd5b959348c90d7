"""Attention-augmented convolution: y = concat(conv(x), MHA(x)) (Bello et al., arXiv:1904.09925)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config.options import Count, Share, checked
from attnbench.models.attention.convolution import dense
from attnbench.models.insertion import Site


class RelativeSelfAttention(nn.Module):
    """O_h = softmax((Q K^T + S_H + S_W) / sqrt(d)) V for each head h; MHA = W_o concat_h(O_h).

    (N, C_in, H, W) to (N, d_v, H', W'), at every ``stride``-th position. The relative logits of a query q at (y, x)
    for a key at (i, j) are S_H = q . r_H[i - y] and S_W = q . r_W[j - x]. The tables r_H and r_W have a vector of
    size d for each offset up to ``reach - 1``, shared by the heads. Larger offsets use the last entry, so maps may have
    any size.

    Args:
        in_channels: of x.
        keys, values: d_k and d_v, of all heads together.
        heads: N_h.
        reach: number of positions that the tables distinguish in each direction; in the paper, the side of the map.
        stride: of the convolution whose output is concatenated.
    """

    def __init__(
        self, in_channels: int, keys: int, values: int, heads: int, reach: int, stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.widths, self.heads, self.reach = [keys, keys, values], heads, reach
        self.project = nn.Conv2d(in_channels, 2 * keys + values, 1, (stride[0], stride[1]), bias=False)
        self.output = nn.Conv2d(values, values, 1, bias=False)
        self.scale = (keys // heads) ** -0.5
        self.offsets_y = nn.Parameter(torch.randn(2 * reach - 1, keys // heads) * self.scale)
        self.offsets_x = nn.Parameter(torch.randn(2 * reach - 1, keys // heads) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """MHA(x), (N, C_in, H, W) to (N, d_v, H', W')."""
        projected = self.project(x)
        height, width = projected.shape[2:]
        parts = [p.unflatten(1, (self.heads, -1)) for p in projected.split(self.widths, dim=1)]
        q, k, v = (part.flatten(3).mT for part in parts)  # (N, heads, H' W', d)
        q = q * self.scale
        logits = q @ k.mT + self.relative(q, height, width)
        weights = torch.softmax(logits, dim=3, dtype=logits.dtype)  # without a dtype, CUDA's autocast keeps float32
        attended = (weights @ v).mT.flatten(1, 2)
        return self.output(attended.unflatten(2, (height, width)))

    def relative(self, q: Tensor, height: int, width: int) -> Tensor:
        """S_H + S_W, (N, heads, H' W', d) to (N, heads, H' W', H' W')."""
        q = q.unflatten(2, (height, width))
        vertical = torch.einsum("nhyxd,yid->nhyxi", q, self.between(self.offsets_y, height))
        horizontal = torch.einsum("nhyxd,xjd->nhyxj", q, self.between(self.offsets_x, width))
        logits = vertical[..., :, None] + horizontal[..., None, :]
        return logits.flatten(4, 5).flatten(2, 3)

    def between(self, offsets: Tensor, length: int) -> Tensor:
        """The table's entry for every pair of positions on an axis, (length, length, d)."""
        position = torch.arange(length, device=offsets.device)
        distance = position[None, :] - position[:, None]
        return offsets[distance.clamp(1 - self.reach, self.reach - 1) + self.reach - 1]


class AugmentedConvolution(nn.Module):
    """y = concat(conv(x), MHA(x)): attention computes d_v of the C output channels.

    (N, C_in, H, W) to (N, C, H', W'). The convolution keeps the trunk's first C - d_v filters.
    """

    def __init__(self, trunk: nn.Conv2d, attention: RelativeSelfAttention) -> None:
        super().__init__()
        self.conv = first_filters(trunk, trunk.out_channels - attention.widths[2])
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """The augmented convolution of x, (N, C_in, H, W) to (N, C, H', W')."""
        return torch.cat([self.conv(x), self.attention(x)], dim=1)


def first_filters(trunk: nn.Conv2d, count: int) -> nn.Conv2d:
    """A copy of the trunk's convolution with only its first output channels."""
    conv = deepcopy(trunk)
    conv.weight = nn.Parameter(conv.weight.detach()[:count].clone())
    conv.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach()[:count].clone())
    conv.out_channels = count
    return conv


@checked
def aa(
    site: Site,
    *,
    heads: Count = 8,
    kappa: Share = 0.2,
    upsilon: Share = 0.1,
    head_keys: Count = 20,
    reach: Count = 28,
) -> nn.Module:
    """Replaces a site's convolution by an attention-augmented one.

    The paper's ResNets have it at the 3x3 convolutions of the last three stages.

    Args:
        heads: N_h.
        kappa: d_k / C, rounded to whole heads.
        upsilon: d_v / C, rounded to whole heads.
        head_keys: minimum d_k of a head.
        reach: relative positions are distinguished up to this distance; 28 is the side of stage 2 at 224x224.

    Raises:
        ConfigError: the trunk is not a dense convolution, or attention would take all of its channels.
    """
    conv, channels = dense(site, "aa"), site.out_channels
    keys = heads * max(head_keys, round(kappa * channels / heads))
    values = heads * max(1, round(upsilon * channels / heads))
    if values >= channels:
        wrong = f"attention takes {values} of the {channels} channels of {site.path}"
        raise ConfigError(wrong, "attention.upsilon", "lower it, or attention.heads, or choose wider sites")
    attention = RelativeSelfAttention(site.in_channels, keys, values, heads, reach, conv.stride)
    return AugmentedConvolution(conv, attention)
