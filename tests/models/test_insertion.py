"""Attention gets in without touching anything else, and where it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from attnbench import create_model
from attnbench.base.errors import ConfigError
from attnbench.config.configuration import Config
from attnbench.config.options import Wrap
from attnbench.models.attention.eca import eca
from attnbench.models.attention.se import se
from attnbench.models.insertion import Attended, Site, insert
from attnbench.models.placement import place
from attnbench.training import setup


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def trunk_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights under their stock names, those of attention left out."""
    named = {key.replace(".trunk", ""): value for key, value in model.state_dict().items()}
    return {key: value for key, value in named.items() if ".attention." not in key}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet20", "mobilenetv2", "mobilenetv2_cifar"])
@pytest.mark.parametrize("attention", ["se", "eca", "sb", "se_layer", "cbam"])
def test_the_same_seed_gives_the_same_trunk(backbone: str, attention: str) -> None:
    torch.manual_seed(3)
    plain = create_model(backbone, num_classes=10)
    torch.manual_seed(3)
    attended = create_model(backbone, attention, num_classes=10)
    ours, stock = trunk_weights(attended), plain.state_dict()
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[key], stock[key]) for key in stock)
    assert count(attended) > count(plain)


@pytest.mark.parametrize(("kernel_size", "added"), [([3, 5, 5, 7], 80), ("adaptive", 86), (3, 48)])
def test_eca_adds_the_printed_parameters_to_resnet50(kernel_size: object, added: int) -> None:
    with torch.device("meta"):
        plain = create_model("resnet50")
        attended = create_model("resnet50", "eca", attention_kwargs={"kernel_size": kernel_size})
    assert count(attended) - count(plain) == added


def test_the_adaptive_rule_on_width_and_with_ties_down() -> None:
    with torch.device("meta"):
        plain = count(create_model("resnet50"))
        width = create_model("resnet50", "eca", attention_kwargs={"adaptive_on": "width"})
        down = create_model("resnet50", "eca", attention_kwargs={"tie": "down"})
    assert (count(width) - plain, count(down) - plain) == (74, 80)


def timm_resnet18(attention: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", block_args={"attn_layer": attention}).eval()


def as_stock(model: nn.Module, theirs: nn.Module) -> None:
    """Give a torchvision ResNet the trunk of timm's, whose names agree but for the attention."""
    stock = {k: v for k, v in theirs.state_dict().items() if ".se." not in k}
    model.load_state_dict(stock)


def randomised(model: nn.Module) -> nn.Module:
    """Batch norm statistics that are not the initial zeros and ones, so that order matters."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if "running" in name or (".bn" in name and value.is_floating_point()):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize("attention", ["se", "eca"])
def test_inserted_attention_equals_timms_own_slot(attention: str) -> None:
    theirs: Any = randomised(timm_resnet18(attention))
    ours = resnet18().eval()
    as_stock(ours, theirs)
    slots = [block.se for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4) for block in stage]

    def build(site: Site) -> nn.Module:
        slot = slots[len(built)]
        built.append(eca(site) if attention == "eca" else se(site, hidden=slot.fc1.out_channels, bias=True))
        return built[-1]

    built: list[Any] = []
    insert(ours, place(roles=["block"]), build)
    for module, slot in zip(built, slots, strict=True):
        copy_slot(module.attention, slot)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = (ours(images) - theirs(images)).abs().max()
    assert difference < 1e-6 * theirs(images).abs().max().clamp(min=1)


def copy_slot(ours: Any, slot: Any) -> None:
    if hasattr(slot, "conv"):
        ours.conv.weight.data.copy_(slot.conv.weight)
        return
    for mine, their in ((ours.reduce, slot.fc1), (ours.expand, slot.fc2)):
        mine.weight.data.copy_(their.weight.flatten(1))
        mine.bias.data.copy_(their.bias)


def test_a_placement_that_finds_nothing_is_refused_and_changes_nothing() -> None:
    model = resnet18()
    before = [type(m) for m in model.modules()]
    with pytest.raises(ConfigError, match="selects no site"):
        insert(model, place(roles=[]), eca)
    with pytest.raises(ConfigError, match="no stage 5"):
        insert(model, place(roles=["block"], stages=[5]), eca)
    with pytest.raises(ConfigError, match="no role depthwise"):
        insert(model, place(roles=["depthwise"]), eca)
    assert [type(m) for m in model.modules()] == before


def test_a_builder_that_fails_halfway_leaves_the_model_whole() -> None:
    model = resnet18()

    def fails_later(site: Site) -> nn.Module:
        if site.stage == 3:
            raise ConfigError("no")
        return eca(site)

    with pytest.raises(ConfigError):
        insert(model, place(roles=["block"]), fails_later)
    assert not any(isinstance(m, Attended) for m in model.modules())


def test_sites_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match="share layer1.0.bn2"):
        insert(resnet18(), place(roles=["conv2", "block"], wrap="conv_norm"), eca)


def test_sites_are_where_and_what_they_say() -> None:
    sites = list(place(roles=["layer"], stages=[2, 4])(resnet50()))
    assert [s.path for s in sites][:4] == ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.conv3", "layer2.1.conv1"]
    assert {s.stage for s in sites} == {2, 4}
    last = sites[-1]
    assert (last.in_channels, last.out_channels, last.role, last.width) == (512, 2048, "conv3", 512)


def test_stages_of_mobilenetv2_follow_its_table_where_channels_do_not_tell() -> None:
    model = create_model("mobilenetv2", backbone_kwargs={"width": 0.35})  # stages 1 and 2 have 8 channels each
    stages = [s.stage for s in place(roles=["block"])(model)]
    assert [stages.count(s) for s in range(1, 8)] == [1, 2, 3, 4, 3, 3, 1]


@pytest.mark.parametrize("wrap", ["conv", "conv_norm", "conv_norm_act"])
def test_a_wrap_point_moves_attention_and_not_the_network(wrap: Wrap) -> None:
    """With an attention that adds nothing, every wrap point computes the stock network."""
    torch.manual_seed(0)
    stock = randomised(create_model("mobilenetv2_cifar", num_classes=10, backbone_kwargs={"width": 0.35})).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = stock(images)

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(())

    roles = ["expand", "depthwise"] if wrap != "conv_norm_act" else []
    if wrap == "conv_norm_act":
        with pytest.raises(ConfigError, match="no activation module that can be wrapped"):
            insert(stock, place(roles=["expand"], wrap="conv_norm_act"), lambda s: s.trunk)
        return
    insert(stock, place(roles=roles, wrap=wrap), lambda s: Attended(s.trunk, Zero(), reads="input", combine="add"))
    assert torch.equal(stock(images), expected)


def test_conv_norm_act_in_a_block_whose_layers_have_their_own_activation() -> None:
    stock = randomised(create_model("mobilenetv2", num_classes=10)).eval()
    images = torch.randn(1, 3, 32, 32)
    expected = stock(images)
    sites = insert(stock, place(roles=["C1", "C2"], wrap="conv_norm_act"), lambda s: s.trunk)
    assert [type(m).__name__ for m in sites[0].trunk.children()] == ["Conv2d", "BatchNorm2d", "ReLU6"]
    assert torch.equal(stock(images), expected)


def test_zero_training_steps_leave_stock_weights_untouched(compose: Callable[..., Config]) -> None:
    config = compose("backbone=resnet18", "attention=se")
    from attnbench.models import factory

    torch.manual_seed(0)
    stock = resnet18(num_classes=10).state_dict()
    torch.manual_seed(0)
    model, _ = factory.network(config, 10)
    with config.build("runtime").start() as process:
        state = setup.train_state(process.place(model), config.build("schedule"), process)
    ours = trunk_weights(state.model)
    assert all(torch.equal(ours[key], stock[key]) for key in stock)
