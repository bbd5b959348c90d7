"""Parameters that the ECA and SB papers print, as the integers that round to them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from attnbench.config.composition import compose
from attnbench.models.insertion import insert


def parameters(overrides: str) -> int:
    """Count the parameters of the network that the overrides describe, on the meta device."""
    config = compose(overrides.split())
    with torch.device("meta"):
        model = config.build("backbone", num_classes=10 if "cifar" in overrides else 1000)
        if config.choices["attention"] != "none":
            insert(model, config.build("placement"), partial(config.build, "attention"))
    return sum(p.numel() for p in model.parameters())


PLAIN = {"resnet50": 25_557_032, "resnet101": 44_549_160, "resnet152": 60_192_808}


@pytest.mark.parametrize(
    ("attention", "added"),
    {  # ECA paper, Table 1: sum C = 15,104 and sum C^2 = 20,119,552 over ResNet-50's 16 block outputs
        "se": 2_514_944,
        "se_var1": 0,
        "se_var2": 15_104,
        "se_var3": 20_119_552,
        "se_gc1": 1_257_472,
        "se_gc2": 241_664,
        "se_gc3": 120_832,
        "eca_ns": 45_312,
        "eca attention.kernel_size=3": 48,
        "eca_paper": 80,
        "eca_released": 80,
        "eca_formula": 86,
        "cbam": 28_073_544 - PLAIN["resnet50"],
        "cbam attention.norm=true": 28_073_544 - PLAIN["resnet50"] + 2 * 16,
        "cbam attention.bias=true": 28_073_544 - PLAIN["resnet50"] + 15_104 + 15_104 // 16,
    }.items(),
)
def test_resnet50_of_the_eca_paper(attention: str, added: int) -> None:
    assert parameters(f"backbone=resnet50 attention={attention}") == PLAIN["resnet50"] + added


@pytest.mark.parametrize(
    ("depth", "attention", "total"),
    [
        ("resnet101", "eca_paper", 44_549_325),
        ("resnet152", "eca_paper", 60_193_058),
        ("resnet152", "eca_released", 60_193_058),
        ("resnet101", "cbam", 49_295_562),
        ("resnet101", "se", 49_292_328),
        ("mobilenetv2", "eca attention.kernel_size=[1,1,1,1,3,3,3]", 3_504_903),
        ("mobilenetv2", "se attention.reduction=8", 3_561_800),
    ],
)
def test_deeper_networks_of_the_eca_paper(depth: str, attention: str, total: int) -> None:
    assert parameters(f"backbone={depth} attention={attention}") == total


def test_gsop_net1() -> None:
    """It has attention in the last block of stages 2, 3 and 4."""
    assert parameters("backbone=resnet50 attention=gsop placement=last_blocks") == 28_054_440


def test_a2_net_stays_near_the_quoted_33_million() -> None:
    """Even blocks of stages 2 and 3: 4 C (C/2) each. The printed 33.0 is quoted from a paper without code."""
    total = parameters("backbone=resnet50 attention=a2 placement=even_blocks")
    assert total == PLAIN["resnet50"] + 2 * 2 * 512**2 + 3 * 2 * 1024**2 == 32_897_064


@pytest.mark.parametrize(("depth", "printed"), [("resnet50", 25.8), ("resnet101", 45.4)])
def test_aa_net_as_quoted(depth: str, printed: float) -> None:
    total = parameters(f"backbone={depth} attention=aa placement.stages=[2,3,4]")
    assert round(total / 1e6, 1) == printed


@pytest.mark.parametrize(
    ("width", "dyconv", "se"),
    [
        (0.35, 2_689_836, 1_735_880),
        (0.5, 3_950_650, 2_086_024),
        (0.75, 7_018_418, 2_898_408),
        (1.0, 11_157_864, 3_966_312),
    ],
)
def test_table_1_of_the_sb_paper(width: float, dyconv: int, se: int) -> None:
    backbone = f"backbone=mobilenetv2 backbone.width={width}"
    assert parameters(f"{backbone} attention=dyconv") == dyconv
    assert parameters(f"{backbone} attention=se_original") == se


@pytest.mark.parametrize(("roles", "total"), [("C1,C3", 2_499_528), ("C1,C2,C3", 2_694_604)])
def test_table_2_of_the_sb_paper(roles: str, total: int) -> None:
    backbone = "backbone=mobilenetv2 backbone.width=0.35"
    assert parameters(f"{backbone} attention=se_layer placement.roles=[{roles}]") == total


@pytest.mark.parametrize(
    ("width", "c1", "c13", "c123"),
    [
        (0.35, 1_088_890, 1_239_674, 1_434_750),
        (0.5, 2_055_994, 2_358_234, 2_745_358),
        (0.75, 4_410_026, 5_088_458, 5_954_462),
        (1.0, 7_586_778, 8_783_450, 10_303_870),
    ],
)
def test_table_5_of_the_sb_paper(width: float, c1: int, c13: int, c123: int) -> None:
    run = f"backbone=mobilenetv2_cifar backbone.width={width} attention=se_layer"
    assert parameters(f"{run} placement.roles=[C1]") == c1
    assert parameters(f"{run} placement.roles=[C1,C3]") == c13
    assert parameters(run) == c123
