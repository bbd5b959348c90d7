"""Second-order pooling against its equations, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.models.attention.gsop import covariance, gsop
from tests.models.attention import block_site


def test_covariance() -> None:
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    for sample, found in zip(x, covariance(x), strict=True):
        torch.testing.assert_close(found, torch.cov(sample.flatten(1), correction=0))


@pytest.mark.parametrize("activation", [False, True])
def test_gsop_is_its_equation(activation: bool) -> None:
    torch.manual_seed(0)
    layer: Any = gsop(block_site(6), channels=4, activation=activation).double().eval()
    s = layer.attention
    s.row_norm.running_mean += torch.arange(4) / 10  # rows are told apart
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    for y, sample in zip(layer(x), x, strict=True):
        reduced = torch.einsum("dc,chw->dhw", s.reduce.weight[:, :, 0, 0], sample.relu())
        reduced = s.norm((reduced + s.reduce.bias[:, None, None])[None])[0].relu()
        rows = s.row_norm(torch.cov(reduced.flatten(1), correction=0)[None, :, :, None])[0, :, :, 0]
        numbers = []
        for r, row in enumerate(rows):  # four numbers from each row, by weights of its own
            weights = s.row_conv.weight[4 * r : 4 * r + 4, 0, 0]
            numbers.append(weights @ row + s.row_conv.bias[4 * r : 4 * r + 4])
        joined = torch.cat(numbers).relu() if activation else torch.cat(numbers)
        gate = torch.sigmoid(s.expand.weight[:, :, 0, 0] @ joined + s.expand.bias)
        torch.testing.assert_close(y, sample * gate[:, None, None])
