"""A folded network gives the same outputs as the original one, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnbench import create_model
from attnbench.models.folding import PRODUCTS, Foreseen, Shifted, folded

# Backbone, attention, placement; the number of Foreseen sites (after a pointwise convolution that widens the map) and
# of Shifted ones (between a convolution and its norm).
NETWORKS = [
    ("resnet50", "none", {}, 0, 0),
    ("resnet50", "se", {}, 16, 0),
    ("resnet50", "eca", {}, 16, 0),
    ("resnet50", "cbam", {}, 0, 0),
    ("resnet20", "eca", {}, 0, 0),
    ("resnet20", "a2", {}, 0, 0),
    ("mobilenetv2_cifar", "sb", {}, 0, 51),
    ("mobilenetv2_cifar", "se_layer", {}, 0, 51),
    ("mobilenetv2_cifar", "sb", {"wrap": "conv_norm"}, 0, 0),
    ("mobilenetv2_cifar", "dyconv", {}, 0, 0),
    ("shufflenetv2", "se_layer", {}, 0, 54),
]


def moved(model: nn.Module) -> nn.Module:
    """The model in float64, with norms and shifts that differ from their initial values."""
    torch.manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() < 2:
            nn.init.uniform_(tensor, 0.5, 1.5)
        if name.endswith("running_mean"):
            nn.init.uniform_(tensor, -0.3, 0.3)
    return model.double()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(("backbone", "attention", "placement", "foreseen", "shifted"), NETWORKS)
def test_a_folded_network_gives_the_outputs_of_the_original(
    backbone: str, attention: str, placement: dict[str, str], foreseen: int, shifted: int
) -> None:
    torch.manual_seed(0)
    model = moved(create_model(backbone, attention, num_classes=5, placement_kwargs=placement)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    network = folded(model)
    assert model.training and not network.training
    assert (count(network, Foreseen), count(network, Shifted)) == (foreseen, shifted)
    if attention not in ("dyconv", "a2"):  # they have norms that do not follow a convolution, or inside attention
        assert norms(network) == 0
    assert norms(network) < norms(model)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model.eval()(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(network(x[:1]), model(x[:1]), rtol=1e-10, atol=1e-10)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("backbone", "attention", "placement"), [network[:3] for network in NETWORKS])
def test_weights_kept_in_autocasts_precision_change_no_bit(
    backbone: str, attention: str, placement: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = moved(create_model(backbone, attention, num_classes=5, placement_kwargs=placement)).float()
    x = torch.randn(2, 3, 32, 32)
    network = folded(model, torch.bfloat16)
    products = [module for module in network.modules() if type(module) in PRODUCTS]
    assert products and all(p.dtype == torch.bfloat16 for module in products for p in module.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), folded(model)(x))


class Twice(nn.Module):
    """A convolution whose output is used by a norm and once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return F.relu(self.norm(z)) + z


class Shared(nn.Module):
    """A norm that follows two convolutions, and a convolution that comes before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv2(self.norm1(self.conv1(x))))
        return self.norm3(self.conv3(self.norm2(self.conv3(x))))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if float(x.sum()) > 0 else x


@pytest.mark.parametrize("kind", [Twice, Shared, Untraceable])
def test_networks_that_cannot_be_folded_keep_their_norms_and_outputs(kind: type[nn.Module]) -> None:
    model = moved(kind())
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    expected = copy.deepcopy(model).eval()(x)
    network = folded(model)
    assert norms(network) == norms(model) and not network.training
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)
