"""Backbones: their sizes, their weights, and which of them have supported blocks."""

from __future__ import annotations

from collections.abc import Callable
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


def sizes(model: nn.Module, side: int, names: list[str]) -> list[int]:
    """The side of each module's output for a square image; maps are square."""
    found: dict[str, int] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: found.update({name: y.shape[-1]}))
    model(torch.zeros(2, 3, side, side, device="meta"))
    return [found[name] for name in names]


RESNET_STAGES = ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet200"])
@pytest.mark.parametrize(("last_stride", "side"), [(2, 7), (1, 14)])
def test_a_resnets_last_stride_is_that_of_stage_4_alone(name: str, last_stride: int, side: int) -> None:
    with torch.device("meta"):
        model = create_model(name, backbone_kwargs={"last_stride": last_stride})
        usual = create_model(name)
    assert sizes(model, 224, RESNET_STAGES) == [56, 28, 14, side]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in usual.state_dict().items()}


def test_a_resnet_without_its_last_stride_has_the_weights_of_the_usual_one() -> None:
    models = []
    for last_stride in (1, 2):
        torch.manual_seed(0)
        models.append(create_model("resnet18", backbone_kwargs={"last_stride": last_stride}).state_dict())
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


# The first blocks of stages 1 to 7 of MobileNetV2 for 32x32, by pytorch-cifar's strides 1, 1, 2, 2, 1, 2, 1
FIRST = [f"layers.{block}" for block in (0, 1, 3, 6, 10, 13, 16)]


@pytest.mark.parametrize(
    ("options", "maps"),
    [
        ({}, [32, 32, 16, 8, 8, 4, 4]),
        ({"stage2_stride": 2}, [32, 16, 8, 4, 4, 2, 2]),
        ({"stem_stride": 2}, [16, 16, 8, 4, 4, 2, 2]),
        ({"stem": 32}, [32, 32, 16, 8, 8, 4, 4]),
    ],
)
def test_the_strides_of_mobilenetv2_for_cifar(options: dict[str, int], maps: list[int]) -> None:
    with torch.device("meta"):
        model = create_model("mobilenetv2_cifar", backbone_kwargs={"width": 0.5} | options)
        usual = create_model("mobilenetv2_cifar", backbone_kwargs={"width": 0.5})
    assert sizes(model, 32, FIRST) == maps
    shapes, stock = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, usual))
    changed = {key.rpartition(".")[0] for key in shapes.keys() | stock.keys() if shapes.get(key) != stock.get(key)}
    if "stem" in options:  # the stem, and the first block, which expands and filters its channels
        assert changed == {"conv1", "bn1", *(f"layers.0.{n}" for n in ("conv1", "bn1", "conv2", "bn2", "conv3"))} | {
            "layers.0.shortcut.0"
        }
        assert shapes["conv1.weight"] == (32, 3, 3, 3)
    elif "stage2_stride" in options:  # at stride 2 a block has no shortcut
        assert changed == {"layers.1.shortcut.0", "layers.1.shortcut.1"}
    else:
        assert changed == set()


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


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:9_000]), "cannot be loaded: "),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "cannot be loaded: "),
        (
            lambda path: torch.save(models.resnet34().state_dict(), path),
            "weights of another network: layer1.2.bn1.bias",
        ),
        (lambda path: torch.save({"state_dict": {}}, path), "weights of another network: bn1.bias"),
    ],
    ids=["empty", "cut off", "noise", "resnet34", "wrapped"],
)
def test_a_damaged_file_of_stock_weights_is_named(
    damage: Callable[[Path], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    saved_weights(tmp_path)
    (path,) = tmp_path.rglob("*.pth")
    damage(path)
    with pytest.raises(StorageError) as caught:
        create_model("resnet18", pretrained=True)
    assert said in caught.value.what and caught.value.where == str(path)


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
