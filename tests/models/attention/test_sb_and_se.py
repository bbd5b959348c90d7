"""The SB paper's claims about scaled and shifted attention (arXiv:2103.13080, section 3 and equation 8)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnbench.models.attention.branch import Branch
from attnbench.models.attention.sb import sb
from attnbench.models.attention.se_layer import se_layer
from attnbench.models.backbones.mobilenetv2_cifar import mobilenetv2_cifar
from attnbench.models.insertion import insert
from attnbench.models.placement import place
from tests.models.attention import layer_site


def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(6, 8, 3, padding=1, bias=False)


def saturated(layer: Any) -> Any:
    """The layer, with a last norm in its branch that always gives -200: sigmoid is 0 and tanh -1, both flat."""
    branch: Any = getattr(layer.attention, "branch", layer.attention)
    nn.init.zeros_(branch.norm2.weight)
    nn.init.constant_(branch.norm2.bias, -200.0)
    return layer


def test_sb_stays_within_lambda_of_the_trunk() -> None:
    """T(x) - lambda <= y <= T(x) + lambda, and the bounds are reached."""
    layer: Any = sb(layer_site(conv()), lambda_init=0.3)
    x = 10 * torch.randn(16, 6, 5, 5)
    nn.init.constant_(layer.attention.branch.norm2.weight, 5.0)
    shift = layer(x) - layer.trunk(x)
    assert shift.abs().max() <= 0.3 + 1e-5 and shift.abs().max() > 0.29
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5), "one shift a channel"


def test_sb_with_lambda_0_is_the_plain_network() -> None:
    """Bit for bit, in training and evaluation mode, with SB at every layer."""

    def small() -> nn.Module:
        torch.manual_seed(0)
        return mobilenetv2_cifar(width=0.35)

    plain, shifted = small(), small()
    sites = insert(shifted, place(roles=["layer"]), lambda site: sb(site, lambda_init=0.0))
    x = torch.randn(3, 3, 32, 32)
    assert len(sites) == 3 * 17 and torch.equal(shifted(x), plain(x))
    assert torch.equal(shifted.eval()(x), plain.eval()(x))


def test_a_saturated_gate_stops_the_trunks_gradient_and_a_shift_does_not() -> None:
    """With SE, dL/dW of the trunk and dL/dx are exactly 0. With SB, they are those of the trunk alone (equation 8)."""
    x, upstream = torch.randn(4, 6, 5, 5, requires_grad=True), torch.randn(4, 8, 5, 5)
    scaled, shifted = (saturated(method(layer_site(conv()))) for method in (se_layer, sb))
    trunk = conv()
    stopped = torch.autograd.grad(scaled(x), [x, scaled.trunk.weight], upstream)
    passed = torch.autograd.grad(shifted(x), [x, shifted.trunk.weight], upstream)
    alone = torch.autograd.grad(trunk(x), [x, trunk.weight], upstream)
    assert not any(gradient.any() for gradient in stopped) and all(gradient.any() for gradient in alone)
    torch.testing.assert_close(passed, alone)


def test_layer_wise_se_is_sb_without_lambda() -> None:
    """It has the same branch, with the same parameters, and multiplies by it."""
    shifted: Any = sb(layer_site(conv()), gate="sigmoid")
    scaled: Any = se_layer(layer_site(conv()))
    scaled.attention.load_state_dict(shifted.attention.branch.state_dict())
    x = torch.randn(4, 6, 5, 5)
    gate = shifted.attention.branch(x)
    torch.testing.assert_close(scaled(x), scaled.trunk(x) * gate)
    assert scaled.reads == "input" and not [k for k in scaled.state_dict() if "lambda" in k]


def masked(x: Tensor, p: float, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return x * torch.nn.functional.dropout(torch.ones_like(x), p)


@pytest.mark.parametrize("method", [sb, se_layer])
@pytest.mark.parametrize("place", ["hidden", "linear", "input"])
def test_dropout_acts_where_it_is_said_to_and_nowhere_else(method: Any, place: str) -> None:
    """Against the branch written out, with the same mask; in evaluation the place makes no difference."""
    layer: Any = method(layer_site(conv()), dropout=0.4, dropout_at=place)
    branch: Branch = getattr(layer.attention, "branch", layer.attention)
    pooled = torch.randn(64, 6)
    z = masked(pooled, 0.4, 7) if place == "input" else pooled
    z = z @ branch.reduce.weight.T
    z = masked(z, 0.4, 7) if place == "linear" else z
    z = torch.relu((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt())
    z = masked(z, 0.4, 7) if place == "hidden" else z
    z = z @ branch.expand.weight.T
    z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
    torch.manual_seed(7)
    gate = torch.tanh if method is sb else torch.sigmoid
    torch.testing.assert_close(branch.signal(pooled), gate(z), rtol=1e-4, atol=1e-5)
    plain: Any = method(layer_site(conv()))
    plain.attention.load_state_dict(layer.attention.state_dict())
    assert torch.equal(layer.eval().attention.signal(pooled), plain.eval().attention.signal(pooled))


def test_dropout_is_in_the_hidden_layer_unless_another_place_is_given() -> None:
    layers: list[Any] = [sb(layer_site(conv()), dropout=0.2), se_layer(layer_site(conv()), dropout=0.2)]
    assert [getattr(layer.attention, "branch", layer.attention).dropout_at for layer in layers] == ["hidden"] * 2
