"""Regions of networks: what is stem, stage, attention, head and trunk, and that they cover a network once."""

from __future__ import annotations

import pytest
import torch

from attnbench import create_model
from attnbench.base.errors import ConfigError
from attnbench.config import composition
from attnbench.models import factory, regions


def parameters(model: torch.nn.Module, name: str) -> set[str]:
    return regions.parameters(model, regions.find(model, name, "key"))


def test_the_regions_of_a_resnet_are_its_parameters_by_name() -> None:
    model = create_model("resnet20", "eca", num_classes=3, backbone_kwargs={"depth": 8})
    named = [name for name, _ in model.named_parameters()]
    attention = {name for name in named if ".attention." in name}
    assert parameters(model, "stem") == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert parameters(model, "stage2") == {name for name in named if name.startswith("layer2.")}
    assert parameters(model, "head") == {"fc.weight", "fc.bias"}
    assert parameters(model, "attention") == attention and len(attention) == 3
    assert parameters(model, "trunk") == set(named) - attention - {"fc.weight", "fc.bias"}
    assert parameters(model, "layer2.0.conv1") == {"layer2.0.conv1.weight"}
    assert parameters(model, "layer[12]") == {name for name in named if name[:6] in ("layer1", "layer2")}


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2", "densenet264", "timm/efficientnet_b0"])
@pytest.mark.parametrize("attention", ["se", "dyconv"])
def test_stem_stages_and_head_cover_every_parameter_once(name: str, attention: str) -> None:
    words = [f"backbone={name}", f"attention={attention}"]
    words += ["placement=layer", "placement.stages=[2]", "placement.blocks=first", "placement.roles=[conv1]"]
    words = words[:-1] if name != "densenet264" else words
    model = factory.sketch(composition.compose(words if attention == "dyconv" else words[:2]), 5)[0]
    found = regions.regions(model)
    split = [name for name in found if name not in ("attention", "trunk")]
    counted = [name for region in split for name in regions.parameters(model, found[region])]
    assert sorted(counted) == sorted(name for name, _ in model.named_parameters())
    parts = [regions.parameters(model, found[name]) for name in ("trunk", "attention", "head")]
    assert sum(map(len, parts)) == len(counted) and set.union(*parts) == set(counted) and all(parts)


def test_of_a_detector_all_but_the_backbone_is_the_head() -> None:
    model = factory.sketch(composition.compose(["task=detection", "detector=faster_rcnn_small", "attention=se"]), 5)[0]
    named = [name for name, _ in model.named_parameters()]
    assert parameters(model, "head") == {name for name in named if not name.startswith("backbone.body.")}
    assert "backbone.body.conv1.weight" in parameters(model, "stem")


def test_an_unknown_part_gives_the_list() -> None:
    model = create_model("resnet20", "eca", num_classes=3)
    with pytest.raises(ConfigError) as caught:
        regions.find(model, "steam", "schedule.freeze")
    assert str(caught.value) == (
        "this network has no part steam (schedule.freeze); did you mean stem? there are attention, head, stage1, "
        "stage2, stage3, stem, trunk, and modules by their names, such as layer1"
    )
