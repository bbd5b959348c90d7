"""CBAM against its equations, channel by channel and position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.models.attention.cbam import cbam
from tests.models.attention import block_site


@pytest.mark.parametrize(("bias", "norm"), [(False, False), (True, True)])
def test_cbam_is_its_equation(bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    layer: Any = cbam(block_site(8), reduction=4, kernel_size=3, bias=bias, norm=norm).double().eval()
    refine = layer.attention
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    for y, sample in zip(layer(x), x, strict=True):
        mean = torch.stack([channel.mean() for channel in sample])
        peak = torch.stack([channel.max() for channel in sample])
        refined = sample * torch.sigmoid(refine.channel.mlp(mean) + refine.channel.mlp(peak))[:, None, None]
        padded = sample.new_zeros(2, 6, 7)
        padded[0, 1:-1, 1:-1], padded[1, 1:-1, 1:-1] = refined.max(0).values, refined.mean(0)
        for i in range(4):
            for j in range(5):
                z = (refine.spatial.conv.weight[0] * padded[:, i : i + 3, j : j + 3]).sum()
                z = refine.spatial.norm(z.view(1, 1, 1, 1)).view(())
                torch.testing.assert_close(y[:, i, j], refined[:, i, j] * torch.sigmoid(z))
    assert (refine.channel.mlp[0].bias is not None) == bias


def test_the_released_norm_starts_with_a_spatial_gate_of_one_half_and_moves_slowly() -> None:
    torch.manual_seed(0)
    layer: Any = cbam(block_site(8), reduction=4, kernel_size=3, norm="released").double()
    norm = layer.attention.spatial.norm
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    gate = torch.sigmoid(layer.attention.channel.mlp(x.mean((2, 3))) + layer.attention.channel.mlp(x.amax((2, 3))))
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None] / 2)
    gated = x * gate[:, :, None, None]
    z = layer.attention.spatial.conv(torch.cat([gated.amax(1, keepdim=True), gated.mean(1, keepdim=True)], 1))
    torch.testing.assert_close(norm.running_mean, 0.01 * z.mean().view(1))  # one step from 0, with momentum 0.01
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * z.var().view(1))
    assert norm.eps == 1e-5


def test_the_plain_norm_is_a_stock_batch_norm() -> None:
    norm: Any = cbam(block_site(8), norm=True)
    norm = norm.attention.spatial.norm
    assert (norm.momentum, norm.weight.item(), norm.bias.item()) == (0.1, 1.0, 0.0)
