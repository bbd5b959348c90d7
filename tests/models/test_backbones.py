"""Backbones: their sizes, their weights, and which of them have supported blocks."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from attnbench import create_model, list_attentions, list_models
from attnbench.base.errors import ConfigError, StorageError
from attnbench.models.attention.sb import sb
from attnbench.models.insertion import insert
from attnbench.models.placement import known_blocks, place

PARAMS = {
    "resnet20": 269_722, "resnet32": 464_154, "resnet56": 853_018, "mobilenetv2_cifar": 2_294_682,
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "resnet200": 64_673_832, "resnext101": 44_177_704, "densenet264": 33_337_704,
    "mobilenetv2": 3_504_872, "shufflenetv2": 2_278_604, "mnasnet": 4_383_312,
}  # fmt: skip


@pytest.mark.parametrize("name", list_models())
def test_every_backbone_has_its_published_size(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=10 if name in list(PARAMS)[:4] else 1000)
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]


def test_names_are_listed_by_pattern() -> None:
    assert list_models("resnet*0") == ["resnet20", "resnet200", "resnet50"]
    assert {"se", "eca", "sb"} <= set(list_attentions())


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Save weights of a ResNet-18 where torchvision keeps its downloads."""
    torch.manual_seed(5)
    weights = models.resnet18().state_dict()
    path = folder / "hub" / "checkpoints" / Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    return weights


def test_pretrained_weights_are_loaded_before_attention_and_without_the_classifier_for_other_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = saved_weights(tmp_path)
    model = create_model("resnet18", attention="eca", pretrained=True, num_classes=7)
    own = {key.replace(".trunk", ""): value for key, value in model.state_dict().items()}
    assert own["fc.weight"].shape == (7, 512)
    trunk = [key for key in weights if not key.startswith("fc.")]
    assert all(torch.equal(own[key], weights[key]) for key in trunk)
    whole = create_model("resnet18", pretrained=True)
    assert torch.equal(whole.state_dict()["fc.weight"], weights["fc.weight"])


def test_weights_that_cannot_be_downloaded_give_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(StorageError, match="no route to host"):
        create_model("resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["resnet200", "resnext101", "densenet264"])
def test_networks_without_pretrained_weights_refuse_them(name: str) -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        create_model(name, pretrained=True)


@pytest.mark.parametrize(("name", "width"), [("shufflenetv2", 0.7), ("mnasnet", 0.35)])
def test_a_width_that_torchvision_lacks_is_refused_with_a_list_of_widths(name: str, width: float) -> None:
    with pytest.raises(ConfigError, match=r"use 0\.5"):
        create_model(name, backbone_kwargs={"width": width})


def evaluated(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    for key, value in model.state_dict().items():  # as after training
        if "running_var" in key:
            value.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_b0", "mnasnet_100"])
def test_an_attention_that_adds_zero_does_not_change_the_outputs_of_a_timm_network(name: str) -> None:
    model = evaluated(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        sites = insert(model, place(roles=["layer"]), lambda site: sb(site, lambda_init=0.0))
        assert torch.equal(model.eval()(images), expected)
    assert len(sites) > 15


def test_timm_networks_are_made_by_name() -> None:
    model = create_model("timm/resnet10t", attention="se", num_classes=3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(ConfigError, match="did you mean resnet10t"):
        create_model("timm/resnet10x", num_classes=3)


def test_the_error_for_a_network_without_supported_blocks_names_its_block_classes() -> None:
    with pytest.raises(ConfigError, match="timm.models.convnext.ConvNeXtBlock") as refused:
        known_blocks(timm.create_model("convnext_atto"))
    assert "ANATOMY" in str(refused.value)


def test_without_attention_any_blocks_will_do() -> None:
    assert create_model("timm/convnext_atto", num_classes=3)(torch.randn(1, 3, 32, 32)).shape == (1, 3)
