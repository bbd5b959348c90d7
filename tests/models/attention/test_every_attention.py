"""Properties of every attention in configs/attention; a new one is tested as soon as it has an option file."""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnbench.base.errors import ConfigError
from attnbench.config.composition import compose
from attnbench.config.configuration import Config
from attnbench.config.option_files import names
from attnbench.models.insertion import Site, insert
from tests.models.attention import block_site, layer_site

ATTENTIONS = [name for name in names("attention") if name != "none"]
SMALL = [
    "resnet18",
    "mobilenetv2 backbone.width=0.35",
    "mobilenetv2_cifar backbone.width=0.35",
    "shufflenetv2 backbone.width=0.5",
    "mnasnet backbone.width=0.5",
]
DEEP = ["resnet50", "mobilenetv2", "shufflenetv2", "mnasnet"]

# Fewer kernels, keys and rows than usual, to save time.
LIGHT = {
    "condconv": ["attention.kernels=2"],
    "dyconv": ["attention.kernels=2"],
    "gsop": ["attention.channels=8"],
    "aa": ["attention.heads=2", "attention.head_keys=3", "attention.reach=3"],
}
# Pairs of attention and backbone that are refused; all others work.
REFUSED = {
    *product(["aa", "eca_released", "se_gc1", "se_gc2"], [b for b in [*SMALL, *DEEP] if "resnet" not in b]),
    ("se_gc3", "shufflenetv2"),  # 58 channels
}
PAIRS = [pair for pair in product(ATTENTIONS, SMALL) if pair not in REFUSED]
# MobileNetV2 and MnasNet have the blocks of their narrow versions above, and channels that are multiples of 8.
DEEP_PAIRS = [
    pytest.param(*pair, marks=pytest.mark.slow if pair[1] in ("mobilenetv2", "mnasnet") else ())
    for pair in product(ATTENTIONS, DEEP)
    if pair not in REFUSED
]
# These have the builder of another attention, and other values.
VARIANTS = ("eca_formula", "eca_paper", "eca_released", "se_gc2", "se_gc3", "se_original")


@cache
def configured(attention: str, backbone: str = "resnet18") -> Config:
    return compose([f"attention={attention}", *LIGHT.get(attention, []), *f"backbone={backbone}".split()])


def network(config: Config, seed: int = 0) -> tuple[nn.Module, list[Site]]:
    torch.manual_seed(seed)
    model = config.build("backbone", num_classes=5)
    return model, insert(model, config.build("placement"), partial(config.build, "attention"))


def module(attention: str, seed: int = 0) -> nn.Module:
    """The attention at one small site of its usual placement, in float64 and evaluation mode."""
    torch.manual_seed(seed)
    config = configured(attention)
    at_layer = config.choices["placement"] != "block"
    site = layer_site(nn.Conv2d(8, 16, 3, padding=1)) if at_layer else block_site(16)
    built = config.build("attention", site).double()
    for parameter in built.parameters():  # away from special values such as lambda 0 and norm weights 1
        parameter.data += 0.1 * torch.rand_like(parameter)
    for norm in (m for m in built.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean += 0.1
        norm.running_var *= 1.5
    return built.eval()


def inputs(attention: str, samples: int = 3, size: tuple[int, int] = (5, 7)) -> Tensor:
    channels = 16 if configured(attention).choices["placement"] == "block" else 8
    return torch.randn(samples, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("attention", "backbone"), PAIRS)
def test_trains_in_small_networks(attention: str, backbone: str) -> None:
    """Maps of odd size, down to 2x2: all gradients are finite, and most of those at the sites are not zero."""
    model, sites = network(configured(attention, backbone))
    logits = model(torch.randn(3, 3, 41, 41))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert logits.shape == (3, 5) and sites
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    module_parameters = [p for site in sites for p in model.get_submodule(site.path).parameters()]
    idle = [p for p in module_parameters if p.grad is not None and not p.grad.any()]
    assert len(idle) < 0.1 * len(module_parameters)  # dead ReLU units and a softmax over one value are allowed


@pytest.mark.parametrize(("attention", "backbone"), DEEP_PAIRS)
def test_shapes_in_deep_networks(attention: str, backbone: str) -> None:
    """Forward and backward at 224x224 on the meta device, which has shapes but no values."""
    with torch.device("meta"):
        model, _ = network(configured(attention, backbone))
        model(torch.randn(2, 3, 224, 224)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize(("attention", "backbone"), sorted(pair for pair in REFUSED if pair[1] in SMALL))
def test_is_refused_where_it_cannot_be_used(attention: str, backbone: str) -> None:
    config = configured(attention, backbone)
    with pytest.raises(ConfigError) as refusal:
        network(config)
    assert refusal.value.where.split(".")[0] in ("attention", "placement") and refusal.value.todo


@pytest.mark.parametrize("attention", [a for a in ATTENTIONS if a != "eca_released"])  # which has four stages
def test_trunk_weights_are_those_of_the_plain_network(attention: str) -> None:
    """The same seed gives the same trunk: stock weights are found unchanged, as kernel 0, or as first filters (AA)."""
    torch.manual_seed(0)
    plain = configured(attention, "resnet20").build("backbone", num_classes=5).state_dict()
    model, sites = network(configured(attention, "resnet20"))
    paths = {f"{site.path}.weight": site for site in sites}
    own = model.state_dict()
    for key, stock in plain.items():
        if key in paths:
            held = list(model.get_submodule(paths[key].path).parameters())
            candidates = [*held, *(p[: len(stock)] for p in held)]
            assert any(torch.equal(stock[: len(c)], c) for c in candidates if c.shape[1:] == stock.shape[1:]), key
        elif key.rpartition(".")[0] not in {site.path for site in sites}:
            assert torch.equal(own[key], stock), key


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_are_correct(attention: str) -> None:
    """Numerical and analytical gradients of the input and every parameter agree, in training mode."""
    built = module(attention).train()
    names, values = zip(*built.named_parameters(), strict=True) if [*built.parameters()] else ((), ())
    x = inputs(attention, size=(3, 4)).requires_grad_()

    def outputs(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(built, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(outputs, (x, *values), fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compiles_without_a_graph_break(attention: str) -> None:
    """With dynamic shapes, at two batch and map sizes: outputs and input gradients equal those of eager execution.

    The backward pass of a variant is not compiled.
    """
    torch._dynamo.reset()
    built = module(attention)
    backend = "eager" if attention in VARIANTS else "aot_eager"
    compiled = torch.compile(built, backend=backend, fullgraph=True, dynamic=True)
    for samples, size in ((3, (5, 7)), (4, (12, 9))):
        x = inputs(attention, samples, size).requires_grad_()
        eager, fast = built(x), compiled(x)
        torch.testing.assert_close(fast, eager)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (fast, eager)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_samples_of_a_batch_are_independent(attention: str) -> None:
    """In evaluation, a batch gives the same outputs as its samples one by one."""
    built, x = module(attention), inputs(attention, 8)
    one_by_one = torch.cat([built(sample[None]) for sample in x])
    torch.testing.assert_close(built(x), one_by_one)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("size", [(5, 7), (12, 12)])
def test_memory_format_does_not_matter(attention: str, size: tuple[int, int]) -> None:
    built, x = module(attention), inputs(attention, size=size)
    expected = built(x)
    assert torch.equal(x, inputs(attention, size=size)), "the input was written to"
    built.to(memory_format=torch.channels_last)
    torch.testing.assert_close(built(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bf16_autocast(attention: str) -> None:
    """Under bf16 autocast, outputs agree with float32 within the precision of bf16, and gradients are finite."""
    built, x = module(attention).float(), inputs(attention).float().requires_grad_()
    expected = built(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = built(x)
    error = (y.float() - expected).norm() / expected.norm()
    y.float().square().sum().backward()
    assert error < 0.03 and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_state_dict_round_trip(attention: str, tmp_path: Path) -> None:
    """The state dict has everything that the output depends on, and loads with weights_only."""
    first, second, x = module(attention, seed=1), module(attention, seed=2), inputs(attention)
    if first.state_dict():
        assert not torch.equal(first(x), second(x))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first(x), second(x))
