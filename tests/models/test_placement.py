"""``ANATOMY`` against the blocks themselves: the modules that run after each convolution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from attnbench import create_model
from attnbench.base.errors import ConfigError
from attnbench.models.insertion import Attended, insert
from attnbench.models.placement import ANATOMY, Layer, known_blocks, place

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


def name_of(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def calls(model: nn.Module, image: Tensor) -> list[str]:
    """The names of the leaf modules that a network calls, in order."""
    called: list[str] = []
    for name, part in model.named_modules():
        if not list(part.children()):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    model(image)
    return called


def follows(block: nn.Module, called: list[str]) -> dict[str, Layer]:
    """Each convolution with the norm called after it and the activation after that, if they are called only once."""
    times, found = Counter(called), {}
    for at, name in enumerate(called):
        if isinstance(block.get_submodule(name), nn.Conv2d):
            norm, act = (block.get_submodule(other) for other in [*called[at + 1 : at + 3], "", ""][:2])
            here = [name, None, None]
            if isinstance(norm, nn.BatchNorm2d) and times[called[at + 1]] == 1:
                here[1] = called[at + 1]
                if isinstance(act, ACTIVATIONS) and times[called[at + 2]] == 1:
                    here[2] = called[at + 2]
            found[name] = Layer(*here)  # type: ignore[arg-type]
    return found


# One backbone per family, whose members have the same blocks.
FAMILIES = ["resnet20", "resnet18", "resnet50", "mobilenetv2", "mobilenetv2_cifar", "shufflenetv2", "mnasnet"]


@pytest.mark.parametrize("name", [*FAMILIES, "densenet264"])
def test_a_layer_is_a_convolution_with_the_norm_and_the_activation_that_follow_it(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=10).eval()
        called = calls(model, torch.zeros(1, 3, 64, 64))
    for path, _, block in known_blocks(model):
        expected = follows(block, [call.removeprefix(f"{path}.") for call in called if call.startswith(f"{path}.")])
        layers = ANATOMY[name_of(type(block))](block).layers
        assert layers, path
        for role, layer in layers.items():
            assert layer == expected[layer.conv], (path, role)


def test_what_shufflenet_has_around_each_of_its_convolutions() -> None:
    """Both kinds of unit by hand; the one that downsamples also has convolutions in its first branch."""
    with torch.device("meta"):
        model = create_model("shufflenetv2", num_classes=10)
    sites = list(place(roles=["layer"], stages=[1], wrap="conv_norm")(model))
    down, unit = ({site.role: site for site in sites if site.block == f"stage2.{n}"} for n in (0, 1))
    assert list(down) == ["expand", "depthwise", "project", "shortcut_depthwise", "shortcut_project"]
    assert list(unit) == ["expand", "depthwise", "project"]
    for site, conv in ((unit["project"], "branch2.5"), (down["shortcut_project"], "branch1.2")):
        (whole,) = place(roles=[site.role], stages=[1], blocks="first", wrap="conv_norm_act")(model)
        branch, _, first = conv.partition(".")
        assert whole.path == f"stage2.0.{conv}"
        assert whole.absorbs == tuple(f"stage2.0.{branch}.{int(first) + k}" for k in (1, 2))
        assert [type(part) for part in whole.trunk.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("name", [*FAMILIES, "densenet264"])
def test_a_site_before_a_norm_gives_its_output_to_that_norm_unchanged(name: str) -> None:
    """So every norm in a block is behind a site, but for those that densenet has in front of its convolutions."""
    written: dict[int, tuple[Tensor, int]] = {}
    given = []
    with torch.device("meta"):
        model = create_model(name, num_classes=10).eval()
        expected = sum(layer.norm is not None for b in known_blocks(model) for layer in layers_of(b[2]))
        insert(model, place(roles=["layer"]), lambda s: Attended(s.trunk, Zero(), reads="input", combine="add"))
        for part in model.modules():
            if isinstance(part, Attended) and part.before_norm:
                part.register_forward_hook(lambda _, x, y: written.update({id(y): (y, y._version)}))
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_pre_hook(lambda _, x: given.append((id(x[0]), (x[0], x[0]._version))))
        model(torch.zeros(1, 3, 64, 64))
    assert len(written) == expected > 0
    for key, (y, version) in written.items():
        assert [(x is y, at) for one, (x, at) in given if one == key] == [(True, version)]


def layers_of(block: nn.Module) -> list[Layer]:
    return list(ANATOMY[name_of(type(block))](block).layers.values())


def test_only_a_bare_convolution_is_before_a_norm() -> None:
    with torch.device("meta"):
        model = create_model("densenet264", num_classes=10)
        assert {site.before_norm for site in place(roles=["conv1"])(model)} == {True}
        assert {site.before_norm for site in place(roles=["conv2"])(model)} == {False}
        assert {site.before_norm for site in place(roles=["conv1"], wrap="conv_norm")(model)} == {False}
        for path, _, _ in known_blocks(model):
            model.set_submodule(f"{path}.norm2", nn.GroupNorm(1, 128))
        assert not any(site.before_norm for site in place(roles=["conv1"])(model))


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


@pytest.mark.parametrize(
    ("name", "role"), [("shufflenetv2", "project"), ("shufflenetv2", "shortcut_project"), ("mnasnet", "depthwise")]
)
def test_attention_after_an_activation_that_adds_zero_does_not_change_the_outputs(name: str, role: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5).eval()
    for key, value in model.state_dict().items():  # as after training
        if "running" in key:
            value.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        placed = place(roles=[role], wrap="conv_norm_act")
        insert(model, placed, lambda site: Attended(site.trunk, Zero(), reads="output", combine="add"))
        assert torch.equal(model(images), expected)


def test_a_layer_without_an_activation_cannot_be_wrapped_with_one() -> None:
    with torch.device("meta"):
        model = create_model("shufflenetv2", num_classes=10)
    for role in ("depthwise", "shortcut_depthwise"):
        with pytest.raises(ConfigError, match=rf"^{role} of InvertedResidual has no activation module"):
            list(place(roles=[role], wrap="conv_norm_act")(model))
