"""Attention-augmented convolution against its equations, query by query and key by key."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.models.attention.aa import RelativeSelfAttention, aa
from attnbench.models.insertion import Site
from tests.models.attention import block_site, layer_site


def plainly(attention: RelativeSelfAttention, x: Tensor, keys: int, values: int, heads: int) -> Tensor:
    """MHA of one map (C_in, H, W), already at the stride, with loops over heads, queries and keys."""
    _, height, width = x.shape
    projected = torch.einsum("oc,chw->ohw", attention.project.weight[:, :, 0, 0], x)
    q, k, v = projected[:keys], projected[keys : 2 * keys], projected[2 * keys :]
    d, dv, far = keys // heads, values // heads, attention.reach - 1
    places = [(y, x) for y in range(height) for x in range(width)]
    joined = x.new_zeros(values, height, width)
    for h in range(heads):
        own, own_v = slice(h * d, (h + 1) * d), slice(h * dv, (h + 1) * dv)
        for y, x_ in places:
            query, logits = q[own, y, x_], []
            for i, j in places:
                down, right = max(-far, min(far, i - y)), max(-far, min(far, j - x_))
                key = k[own, i, j] + attention.offsets_y[down + far] + attention.offsets_x[right + far]
                logits.append(query @ key / math.sqrt(d))
            weights = torch.softmax(torch.stack(logits), 0)
            joined[own_v, y, x_] = sum(w * v[own_v, i, j] for w, (i, j) in zip(weights, places, strict=True))
    return torch.einsum("oc,chw->ohw", attention.output.weight[:, :, 0, 0], joined)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("reach", [2, 9])
def test_aa_is_its_equation(stride: int, reach: int) -> None:
    """At offsets that the tables tell apart and beyond; the convolution gives the first channels."""
    torch.manual_seed(0)
    trunk = nn.Conv2d(5, 16, 3, stride=stride, padding=1).double()
    assert trunk.bias is not None
    weight, bias = trunk.weight.detach().clone(), trunk.bias.detach().clone()
    layer: Any = aa(layer_site(trunk), heads=2, kappa=0.4, upsilon=0.25, head_keys=1, reach=reach).double()
    x = torch.randn(2, 5, 5, 7, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y[:, :12], F.conv2d(x, weight[:12], bias[:12], stride, 1))
    strided = x[:, :, ::stride, ::stride]
    expected = torch.stack([plainly(layer.attention, m, keys=6, values=4, heads=2) for m in strided])
    torch.testing.assert_close(y[:, 12:], expected)
    assert trunk.out_channels == 16, "the site's trunk was cut, not a copy of it"


def test_positions_matter() -> None:
    """A mirrored map gives the mirrored answer without positions and another one with them."""
    torch.manual_seed(0)
    attention = RelativeSelfAttention(3, keys=4, values=4, heads=2, reach=8, stride=(1, 1)).double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64)
    turned = attention(x.flip(3)).flip(3)
    assert (attention(x) - turned).abs().max() > 1e-3, "blind to positions"
    attention.offsets_x.data.zero_()
    attention.offsets_y.data.zero_()
    torch.testing.assert_close(attention(x.flip(3)).flip(3), attention(x))


def test_keys_have_at_least_20_a_head() -> None:
    """kappa 0.2 of 64 channels is 12.8; the paper's floor makes it 20 for each of 8 heads."""
    layer: Any = aa(layer_site(nn.Conv2d(64, 64, 3, padding=1)))
    assert layer.attention.widths == [160, 160, 8] and layer.conv.out_channels == 56


@pytest.mark.parametrize(
    "site",
    [
        layer_site(nn.Conv2d(16, 16, 3, padding=1, groups=16), role="depthwise"),
        layer_site(nn.Conv2d(16, 16, 3), role="conv1"),
        block_site(16, nn.BatchNorm2d(16)),
    ],
    ids=["depthwise", "unpadded", "norm"],
)
def test_refuses_by_role(site: Site) -> None:
    with pytest.raises(ConfigError, match=f"aa cannot be used at .* the role {site.role} .*conv2"):
        aa(site)


def test_refuses_to_take_all_channels() -> None:
    with pytest.raises(ConfigError, match="attention takes 8 of the 8 channels"):
        aa(layer_site(nn.Conv2d(8, 8, 1)))
