"""Weights under other names give the same logits, and errors name the weights that do not fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import CecaModule, SEModule
from torch import Tensor, nn
from torch.nn import functional as F

from attnbench import create_model
from attnbench.base.errors import ConfigError, StorageError
from attnbench.models import weights
from attnbench.models.attention.eca import EfficientChannelAttention, eca
from attnbench.models.attention.se import se
from attnbench.models.insertion import Attended, Site, insert
from attnbench.models.placement import place
from tests.conftest import refused

CLASSES = 10
RELEASED_K = [3, 5, 5, 7]


def randomised(model: nn.Module, seed: int = 1) -> Any:
    """Draw every weight and statistic at random, so that each one affects the logits, which are about 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(seed)
        elif value.ndim > 1:
            bound = (3 / value[0].numel()) ** 0.5
            value.copy_((2 * torch.rand(value.shape, generator=generator) - 1) * bound)
        else:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.eval()


def timm_resnet(name: str, attention: str | type[nn.Module] | functools.partial[nn.Module]) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, block_args={"attn_layer": attention})


def ours_like(theirs: nn.Module, name: str, attention: str, bias: bool = True) -> nn.Module:
    """Our network with the hidden widths of timm's SE, or its kernel sizes."""
    slots = [slot for path, slot in theirs.named_modules() if path.endswith(".se")]
    model = create_model(name, num_classes=CLASSES)
    following = iter(slots)

    def build(site: Site) -> nn.Module:
        slot = next(following)
        if attention == "eca":
            return eca(site, kernel_size=slot.conv.kernel_size[0])
        return se(site, hidden=slot.fc1.out_channels, bias=bias)

    insert(model, place(roles=["block"]), build)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def equal_logits(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        expected, difference = one.eval()(images), (one(images) - other.eval()(images)).abs().max()
    assert 0.1 < expected.abs().max() < 100  # else a difference of 1e-5 means little
    return bool(difference < 1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("attention", ["se", "eca"])
def test_weights_go_to_timm_and_back(name: str, attention: str, images: Tensor) -> None:
    theirs = timm_resnet(name, attention)
    ours = randomised(ours_like(theirs, name, attention))
    assert not equal_logits(ours, theirs, images)
    weights.to_timm(ours, theirs)
    assert equal_logits(ours, theirs, images)
    again = ours_like(theirs, name, attention)
    weights.from_timm(again, theirs)
    assert same(ours.state_dict(), again.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_timm_weights_fit_a_timm_backbone_with_inserted_attention(images: Tensor) -> None:
    """``backbone=timm/resnet18`` with inserted SE has the same names as torchvision's ResNet."""
    theirs = randomised(timm_resnet("resnet18", "se"))
    ours = timm.create_model("resnet18", num_classes=CLASSES)
    hidden = iter([8, 8, 8, 8, 16, 16, 32, 32])
    insert(ours, place(roles=["block"]), lambda site: se(site, hidden=next(hidden), bias=True))
    weights.from_timm(ours, theirs)
    assert equal_logits(ours, theirs, images)


def test_an_se_without_biases_goes_to_timm_and_back_as_zeros(images: Tensor) -> None:
    theirs = randomised(timm_resnet("resnet18", "se"))  # its biases are overwritten
    ours = randomised(ours_like(theirs, "resnet18", "se", bias=False), seed=2)
    weights.to_timm(ours, theirs)
    assert not theirs.layer1[0].se.fc1.bias.any()
    assert equal_logits(ours, theirs, images)
    again = ours_like(theirs, "resnet18", "se", bias=False)
    weights.from_timm(again, theirs)
    assert same(ours.state_dict(), again.state_dict())


def test_biases_are_refused_by_an_se_that_has_none() -> None:
    theirs = randomised(timm_resnet("resnet18", "se"))
    ours = ours_like(theirs, "resnet18", "se", bias=False)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    refused(
        lambda: weights.from_timm(ours, theirs),
        StorageError,
        "layer1.0.se.fc1.bias",
        "and 11 more",
        "attention.bias=true",
    )
    assert same(before, ours.state_dict())
    bare = timm_resnet("resnet18", functools.partial(SEModule, bias=False))
    biased = randomised(ours_like(theirs, "resnet18", "se"))
    refused(lambda: weights.to_timm(biased, bare), StorageError, "layer1.0.se.fc1.bias")


@pytest.mark.parametrize(
    ("attention", "options", "slot", "named"),
    [
        ("se", {"reduction": 16, "bias": True}, "se", "layer1.0.se.fc1.weight 4x64x1x1 for 8x64x1x1"),
        ("eca", {"kernel_size": 9}, "eca", "layer1.0.se.conv.weight 1x1x9 for 1x1x3"),
        ("eca", {}, "se", "unexpected layer1.0.se.conv.weight"),
        ("none", {}, "eca", "missing layer1.0.se.conv.weight"),
    ],
)
def test_differences_from_timms_slot_are_named_and_nothing_is_copied(
    attention: str, options: dict[str, object], slot: str, named: str
) -> None:
    theirs = timm_resnet("resnet18", slot)
    ours = create_model("resnet18", attention, num_classes=CLASSES, attention_kwargs=options)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    refused(lambda: weights.to_timm(ours, theirs), StorageError, named)
    assert same(before, theirs.state_dict())


@pytest.mark.parametrize(
    ("attention", "options", "reason"),
    [
        ("sb", {}, "ShiftAndBalance"),
        ("se", {"gate": "tanh"}, "gate=tanh"),
        ("se", {"norm": True}, "Branch"),
        ("se_layer", {}, "reads=input"),
    ],
)
def test_attention_without_a_slot_in_timm_is_refused(attention: str, options: dict[str, object], reason: str) -> None:
    model = create_model("resnet18", attention, num_classes=CLASSES, attention_kwargs=options)
    refused(lambda: weights.to_timm(model, timm_resnet("resnet18", "se")), ConfigError, reason)


@pytest.mark.parametrize(("reads", "combine"), [("input", "mul"), ("output", "add")])
def test_a_gate_that_reads_the_input_or_is_added_has_no_slot(
    reads: Literal["input", "output"], combine: Literal["mul", "add"]
) -> None:
    model = create_model("resnet18", num_classes=CLASSES)

    def build(site: Site) -> nn.Module:
        return Attended(site.trunk, EfficientChannelAttention(3), reads=reads, combine=combine)

    insert(model, place(roles=["block"]), build)
    theirs = timm_resnet("resnet18", "eca")
    refused(lambda: weights.to_timm(model, theirs), ConfigError, f"reads={reads}, combine={combine}")


def test_attention_inside_a_block_has_no_slot_in_timm() -> None:
    model = create_model("resnet18", num_classes=CLASSES)
    insert(model, place(roles=["conv1"], wrap="conv_norm"), eca)
    refused(
        lambda: weights.to_timm(model, timm_resnet("resnet18", "eca")),
        ConfigError,
        "conv1 is not the last norm of layer1.0",
    )


@pytest.mark.parametrize(
    "slot",
    [CecaModule, functools.partial(SEModule, gate_layer="hard_sigmoid"), functools.partial(SEModule, add_maxpool=True)],
    ids=["circular", "gate", "maxpool"],
)
def test_a_slot_with_the_same_names_that_computes_something_else_is_refused(slot: type[nn.Module]) -> None:
    theirs = timm_resnet("resnet18", slot)
    attention = "eca" if slot is CecaModule else "se"
    ours = ours_like(theirs, "resnet18", attention)
    for convert in (weights.to_timm, weights.from_timm):
        refused(functools.partial(convert, ours, theirs), ConfigError, "layer1.0.se is", "not plain SE or ECA")


class ReleasedECA(nn.Module):
    """ECA written a second time, with the official names."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=(k - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)[..., 0].transpose(1, 2)
        return x * torch.sigmoid(self.conv(pooled)).transpose(1, 2)[..., None]


class ReleasedResNet(nn.Module):
    """A stock ResNet whose blocks call ``eca`` after their last norm."""

    def __init__(self, name: str, k: list[int]) -> None:
        super().__init__()
        self.bn1: nn.Module
        self.conv1: nn.Module
        self.maxpool: nn.Module
        self.fc: nn.Module
        stock = create_model(name, num_classes=CLASSES)
        for child, module in stock.named_children():
            self.add_module(child, module)
        for stage, size in enumerate(k, start=1):
            for block in self.get_submodule(f"layer{stage}").children():
                block.eca = ReleasedECA(size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            for block in self.get_submodule(f"layer{stage}").children():
                shortcut = block.downsample(x) if isinstance(block.downsample, nn.Module) else x
                x = F.relu(self.branch(block, x) + shortcut)
        return self.fc(x.mean((2, 3)))

    @staticmethod
    def branch(block: nn.Module, x: Tensor) -> Tensor:
        last = 3 if hasattr(block, "conv3") else 2
        for n in range(1, last + 1):
            x = block.get_submodule(f"bn{n}")(block.get_submodule(f"conv{n}")(x))
            x = F.relu(x) if n < last else x
        return block.get_submodule("eca")(x)


def released_mobilenetv2() -> nn.Module:
    """A stock MobileNetV2 with k = 1 below 96 channels, else 3, as the last module of each block's branch."""
    model: Any = create_model("mobilenetv2", num_classes=CLASSES)
    for block in model.features[1:-1]:
        channels = block.conv[-1].num_features
        block.conv.append(ReleasedECA(1 if channels < 96 else 3))
    return model


RELEASED = {
    "resnet18": (lambda: ReleasedResNet("resnet18", [3, 5, 7, 7]), [3, 5, 7, 7]),
    "resnet50": (lambda: ReleasedResNet("resnet50", RELEASED_K), RELEASED_K),
    "mobilenetv2": (released_mobilenetv2, [1, 1, 1, 1, 3, 3, 3]),
}


def checkpoint(model: nn.Module, path: Path) -> Path:
    """Save a checkpoint as the official main.py does, in the file format of the torch version of that time."""
    content = {
        "epoch": 100,
        "arch": "se_resnet50",
        "state_dict": nn.DataParallel(model).state_dict(),
        "best_prec1": torch.tensor(77.4),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_checkpoint_gives_its_networks_logits(name: str, images: Tensor, tmp_path: Path) -> None:
    build, k = RELEASED[name]
    theirs = randomised(build())
    file = checkpoint(theirs, tmp_path / "eca.pth.tar")
    assert next(iter(torch.load(file, weights_only=True)["state_dict"])).startswith("module.")
    ours = create_model(name, "eca", num_classes=CLASSES, attention_kwargs={"kernel_size": k})
    weights.load_released(ours, file)
    assert equal_logits(theirs, ours, images)


def test_released_names_are_the_official_ones() -> None:
    """The names are copied from models/eca_resnet.py and models/eca_mobilenetv2.py of github.com/BangguWu/ECANet."""
    resnet = ReleasedResNet("resnet50", RELEASED_K).state_dict()
    assert resnet["layer3.5.eca.conv.weight"].shape == (1, 1, 5)
    mobilenet = released_mobilenetv2().state_dict()
    assert mobilenet["features.1.conv.3.conv.weight"].shape == (1, 1, 1)  # the block without expansion
    assert mobilenet["features.10.conv.4.conv.weight"].shape == (1, 1, 1)
    assert mobilenet["features.11.conv.4.conv.weight"].shape == (1, 1, 3)  # 96 channels; 1x1x1 before July 2020
    assert mobilenet["features.17.conv.4.conv.weight"].shape == (1, 1, 3)


def test_the_error_for_a_wrong_k_gives_the_released_one() -> None:
    theirs = ReleasedResNet("resnet50", RELEASED_K).state_dict()
    ours = create_model("resnet50", "eca", num_classes=CLASSES)  # adaptive: 5, 5, 5, 7
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    wrong = "wrong shape layer1.0.eca.conv.weight 1x1x3 for 1x1x5, layer1.1.eca"
    line = refused(lambda: weights.load_released(ours, theirs), StorageError, wrong, "kernel_size=[3, 5, 5, 7]")
    assert "layer2" not in line
    assert same(before, ours.state_dict())


def test_the_released_layout_has_eca_only() -> None:
    model = create_model("resnet18", "se", num_classes=CLASSES)
    refused(lambda: weights.load_released(model, model.state_dict()), ConfigError, "layer1.0.bn2 is not ECA")


def test_at_most_five_weights_of_each_kind_are_listed() -> None:
    model = create_model("resnet18", "eca", num_classes=CLASSES)
    state = dict(model.state_dict())
    gone = [state.pop(key) for key in list(state) if key.startswith("layer1.0.")]
    state |= {f"head.{i}": torch.zeros(1) for i in range(7)}
    state |= {f"{key}": torch.zeros(2, 2) for key in ("fc.weight", "fc.bias")}
    line = refused(
        lambda: weights.load(model, state, "some.pt"),
        StorageError,
        "missing layer1.0.conv1.weight, layer1.0.bn1.weight, layer1.0.bn1.bias, layer1.0.bn1.running_mean, "
        f"layer1.0.bn1.running_var and {len(gone) - 5 - 2} more;",  # two of them are num_batches_tracked
        "unexpected head.0, head.1, head.2, head.3, head.4 and 2 more;",
        "wrong shape fc.weight 2x2 for 10x512, fc.bias 2x2 for 10 (some.pt)",
    )
    assert "head.5" not in line


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    one, two = torch.ones(1), torch.zeros(1)
    assert weights.stripped({f"{prefix}module_a.weight": one, f"{prefix}b": two}) == {"module_a.weight": one, "b": two}


def test_a_prefix_that_only_some_names_have_is_kept() -> None:
    state = {"module.a": torch.ones(1), "b": torch.zeros(1)}
    assert weights.stripped(state) == state


def test_a_state_dict_without_num_batches_tracked_loads() -> None:
    model: Any = create_model("resnet18", num_classes=CLASSES)
    state = {k: v for k, v in randomised(model).state_dict().items() if not k.endswith("num_batches_tracked")}
    other: Any = create_model("resnet18", num_classes=CLASSES)
    weights.load(other, state, "old.pt")
    assert torch.equal(other.fc.weight, model.fc.weight)


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(3.0)}
    plain, wrapped, safe = tmp_path / "plain.pt", tmp_path / "wrapped.pth", tmp_path / "model.safetensors"
    torch.save(state, plain)
    torch.save({"state_dict": {"module.a.weight": state["a.weight"]}}, wrapped)
    save_file(state, safe)
    for path in (plain, wrapped, safe):
        assert same(weights.read(path), state)


class Evil:
    """An object that creates a file when an unsafe loader unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_files_without_weights_are_refused_and_not_executed(tmp_path: Path) -> None:
    evil, text, cut, half = (tmp_path / name for name in ("evil.pt", "text.pt", "cut.safetensors", "half.pt"))
    marker = tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.zeros(1), "b": Evil(marker)}}, evil)
    text.write_text("not weights")
    cut.write_bytes(b"\x08\0\0\0\0\0\0\0{")
    torch.save({"epoch": 3}, half)
    missing = tmp_path / "missing.pt"
    for path, what in (
        (evil, "not safe to load"),
        (text, "not weights"),
        (cut, "not a safetensors file"),
        (half, "no state dict"),
        (missing, "No such file"),
        (missing.with_suffix(".safetensors"), "cannot read"),
        (tmp_path, "cannot read"),
    ):
        refused(functools.partial(weights.read, path), StorageError, what, str(path))
    assert not marker.exists()
