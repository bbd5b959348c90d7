"""Attention at modules that patterns name, in networks whose blocks attnbench does not know."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config import composition
from attnbench.models import dry_run, factory, stock_attention
from attnbench.models.insertion import Attended, Site

Command = Callable[..., subprocess.CompletedProcess[str]]

OWN_BACKBONE = '''
from torch import Tensor, nn
from attnbench import checked
from attnbench.config.options import Count

class Unit(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv_a = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv_b = nn.Conv2d(outside, outside, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x).relu()).relu()

class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.units = nn.Sequential(Unit(3, width, 1), Unit(width, 2 * width, 2), Unit(2 * width, 2 * width, 1))
        self.norm, self.fc = nn.BatchNorm2d(2 * width), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.units(x)).mean((2, 3)))

@checked
def net(*, width: Count = 8, num_classes: Count = 10) -> nn.Module:
    """A small network of somebody's own."""
    return Net(width, num_classes)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a backbone of its own, and the folder of its option."""
    package = tmp_path / "mynets"
    options = package / "configs" / "backbone"
    options.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(OWN_BACKBONE)
    (options / "mynet.yaml").write_text("_target_: mynets.nets.net\nwidth: 8\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ATTNBENCH_TRUST", "mynets")
    return package / "configs"


def test_ones_own_network_trains_with_attention_at_modules_by_name(own: Path, command: Command, tmp_path: Path) -> None:
    words = [
        "train",
        f"--config-dir={own}",
        "backbone=mynet",
        "attention=se",
        "attention.reduction=4",
        "placement=paths",
    ]
    words += ["placement.paths=[units.*.conv_b]", "schedule.epochs=1", "dataset.size=8", "runtime.device=cpu"]
    end = command(*words)
    assert end.returncode == 0, end.stderr
    (run,) = (tmp_path / "outputs").glob("runs/digits/mynet/se-paths-*/seed0")
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]
    assert {key for key in state if key.endswith("reduce.weight")} == {
        f"units.{number}.conv_b.attention.reduce.weight" for number in range(3)
    }
    assert state["units.1.conv_b.attention.reduce.weight"].shape == (4, 16)


def test_channels_and_stages_are_found_by_a_dry_run() -> None:
    """A RegNet, whose blocks are in no table: stages by resolution, finest first."""
    words = ["backbone=timm/regnetx_002", "attention=sb", "placement=paths", "placement.paths=['s*.b1.conv2.conv']"]
    model, sites = factory.sketch(composition.compose(words), 5)
    found = [(site.path, site.role, site.in_channels, site.out_channels, site.stage, site.stages) for site in sites]
    assert found == [
        ("s1.b1.conv2.conv", "conv", 24, 24, 1, 4),
        ("s2.b1.conv2.conv", "conv", 56, 56, 2, 4),
        ("s3.b1.conv2.conv", "conv", 152, 152, 3, 4),
        ("s4.b1.conv2.conv", "conv", 368, 368, 4, 4),
    ]
    assert isinstance(model.get_submodule("s3.b1.conv2.conv"), Attended)


def facts(site: Site) -> tuple[str, int, int, int, int]:
    return site.path, site.in_channels, site.out_channels, site.stage, site.stages


def test_by_name_and_by_role_is_the_same_where_both_are_known() -> None:
    line = ["backbone=resnet18", "attention=se"]
    by_role = factory.sketch(composition.compose([*line, "placement=layer", "placement.roles=[conv2]"]), 5)[1]
    by_name = factory.sketch(composition.compose([*line, "placement.paths=['layer*.conv2']"]), 5)[1]
    facts = [
        [(s.path, s.in_channels, s.out_channels, s.stage, s.stages) for s in sites] for sites in (by_role, by_name)
    ]
    assert facts[0] == facts[1] and len(facts[0]) == 8


def test_the_dry_run_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
    model[1].eval()
    torch.manual_seed(3)
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert [site.out_channels for site in dry_run.sites(model, ["0"], {})] == [4]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in model] == [True, False, True, True]
    assert not model[0]._forward_hooks


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("conv", "conv, a Conv2d, is used 2 times in a forward pass (placement.paths)"),
        ("unused", "unused, a Conv2d, is used 0 times in a forward pass"),
        ("fc", "fc, a Linear, does not map (N, C, H, W) to (N, C', H', W'): (1, 3) -> (1, 2)"),
        ("convs.*", "no module of Odd is named convs.* (placement.paths); use names such as"),
    ],
)
def test_a_module_that_is_no_place_for_attention_is_named(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        list(dry_run.sites(Odd(), [pattern], {}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["placement.paths=['layer1.0', 'layer1.0.conv1']"], "layer1.0 contains layer1.0.conv1"),
        (["placement.paths=['layer*.conv1']", "placement.stages=[2]"], "paths name the modules themselves"),
        (["placement=paths"], "attention=se needs a placement"),
        (["placement.paths=layer1"], "it is a list of text or null"),
    ],
)
def test_paths_that_cannot_be_are_refused_in_one_line(words: list[str], said: str, command: Command) -> None:
    end = command("show", "backbone=resnet18", "attention=se", *words)
    assert end.returncode == 2 and said in end.stderr, end.stderr


def test_attention_of_the_stock_network_is_named_before_one_adds_another(command: Command) -> None:
    end = command("show", "backbone=timm/mobilenetv3_small_050", "attention=eca")
    assert end.returncode == 0, end.stderr
    text = " ".join(end.stdout.split())
    assert "the network has attention of its own at 9 places (SqueezeExcite): blocks.0.0.se" in text
    model = factory.sketch(composition.compose(["backbone=resnet18", "attention=se"]), 5)[0]
    assert not stock_attention.own(model)
