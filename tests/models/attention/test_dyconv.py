"""Dynamic and conditional convolution beyond the mixing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter

from attnbench.base.errors import ConfigError
from attnbench.models.attention.condconv import condconv
from attnbench.models.attention.dyconv import dyconv
from attnbench.models.insertion import Site
from tests.models.attention import block_site, layer_site


@pytest.mark.parametrize(
    "trunk",
    [
        nn.Conv2d(8, 12, 1, bias=False),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 12, 3, padding=1),
    ],
    ids=["pointwise", "depthwise", "dense"],
)
@pytest.mark.parametrize("size", [(4, 5), (17, 16)])
def test_batch_of_8_is_8_batches_of_1(trunk: nn.Conv2d, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = dyconv(layer_site(trunk), temperature=1.0).double().eval()
    x = 3 * torch.randn(8, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.cat([layer(sample[None]) for sample in x]))
    assert layer(x[:1]).shape[2:] == trunk.double()(x[:1]).shape[2:]


def test_dyconv_is_its_equation() -> None:
    """pi by hand from the branch's weights, at the temperature asked for."""
    torch.manual_seed(0)
    layer: Any = dyconv(layer_site(nn.Conv2d(8, 5, 3, padding=1)), temperature=3.0).double().eval()
    x, branch = torch.randn(2, 8, 6, 6, dtype=torch.float64), layer.branch
    for y, sample in zip(layer(x), x, strict=True):
        hidden = branch.norm1(branch.reduce(sample.mean((1, 2)))[None]).relu()
        pi = torch.softmax(branch.norm2(branch.expand(hidden))[0] / 3.0, dim=0)
        kernel, bias = (torch.tensordot(pi, t, 1) for t in (layer.conv.kernels, layer.conv.bias))
        torch.testing.assert_close(y, F.conv2d(sample, kernel, bias, padding=1))
    assert branch.reduce.out_features == 8 // 4 and branch.reduce.bias is not None and len(pi) == 4


def test_condconv_is_its_equation() -> None:
    torch.manual_seed(0)
    layer: Any = condconv(layer_site(nn.Conv2d(8, 5, 3, padding=1)), kernels=3).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for y, sample in zip(layer(x), x, strict=True):
        r = torch.sigmoid(layer.routing.weight @ sample.mean((1, 2)) + layer.routing.bias)
        kernel, bias = (torch.tensordot(r, t, 1) for t in (layer.conv.kernels, layer.conv.bias))
        torch.testing.assert_close(y, F.conv2d(sample, kernel, bias, padding=1))


def test_temperature_stays_unless_annealed() -> None:
    layer: Any = dyconv(layer_site(nn.Conv2d(8, 8, 1)))
    layer.set_progress(50.0)
    assert layer.temperature == 30.0
    layer = dyconv(layer_site(nn.Conv2d(8, 8, 1)), annealing_epochs=10.0)
    temperatures = []
    for epoch in (0.0, 2.5, 10.0, 99.0):
        layer.set_progress(epoch)
        temperatures.append(layer.temperature)
    assert temperatures == [30.0, 22.75, 1.0, 1.0]
    assert not [key for key in layer.state_dict() if "temp" in key]


def test_annealing_compiles_at_most_twice() -> None:
    """A temperature that moves at every step must not compile the network at every step."""
    torch._dynamo.reset()
    layer: Any = dyconv(layer_site(nn.Conv2d(8, 8, 1)), annealing_epochs=10.0).eval()
    counter = CompileCounter()
    compiled, x = torch.compile(layer, backend=counter, fullgraph=True), torch.randn(2, 8, 4, 4)
    for step in range(12):
        layer.set_progress(step / 3)
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("method", [dyconv, condconv])
def test_takes_only_a_stock_convolution(method: Callable[[Site], nn.Module]) -> None:
    """A norm, a wrapped convolution and one with a forward or padding of its own are refused by role."""

    class OwnForward(nn.Conv2d): ...

    conv = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    for site in (
        block_site(8, nn.BatchNorm2d(8)),
        block_site(8, nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), role="conv1"),
        layer_site(OwnForward(8, 8, 1)),
        layer_site(conv),
    ):
        with pytest.raises(ConfigError, match=f"the role {site.role} .*depthwise"):
            method(site)
