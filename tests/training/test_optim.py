"""The learning-rate laws against values by hand, and the parameters that the optimizer updates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from attnbench.base.errors import ConfigError
from attnbench.config import composition
from attnbench.training.optim import Schedule


def schedule(**options: Any) -> Schedule:
    given: dict[str, Any] = {"law": "cosine", "epochs": 100, "lr": 0.1}
    return Schedule(**given | options)


@pytest.mark.parametrize(
    ("law", "epoch", "rate"),
    [
        ("step", 0, 0.1),  # the ECA paper's ResNets: x0.1 every 30 epochs
        ("step", 29.99, 0.1),
        ("step", 30, 0.01),
        ("step", 60, 0.001),
        ("step", 99, 0.0001),
        ("linear", 0, 0.1),
        ("linear", 25, 0.075),
        ("linear", 99, 0.001),
        ("linear", 100, 0.0),
        ("cosine", 0, 0.1),
        ("cosine", 25, 0.1 * (1 + math.sqrt(0.5)) / 2),
        ("cosine", 50, 0.05),
        ("cosine", 75, 0.1 * (1 - math.sqrt(0.5)) / 2),
        ("cosine", 100, 0.0),
    ],
)
def test_the_laws_have_their_values_by_hand(law: str, epoch: float, rate: float) -> None:
    assert schedule(law=law).rate(epoch, 64) == pytest.approx(rate, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (7.99, 0.1), (8, 0.02), (10, 0.02), (11, 0.004), (11.5, 0.004)])
def test_a_list_of_drops_is_of_the_epochs_after_which_the_rate_is_lower(epoch: float, rate: float) -> None:
    """After 8 epochs, the ninth, number 8 from 0, has the lower rate."""
    drops = schedule(law="step", epochs=12, period=[8, 11], factor=0.2)
    assert drops.rate(epoch, 64) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.045), (1, 0.0441), (2.7, 0.043218), (399, 0.045 * 0.98**399)])
def test_the_exponential_law_is_that_of_mobilenetv2(epoch: float, rate: float) -> None:
    assert schedule(law="exponential", factor=0.98, lr=0.045).rate(epoch, 96) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("law", ["step", "exponential", "linear", "cosine"])
def test_a_rate_by_epoch_stays_inside_the_epoch_and_one_by_step_moves(law: str) -> None:
    by_epoch, by_step = schedule(law=law, factor=0.9, period=1), schedule(law=law, factor=0.9, per="step")
    assert by_epoch.rate(7.0, 64) == by_epoch.rate(7.99, 64) > by_epoch.rate(8.0, 64)
    assert (by_step.rate(7.0, 64) > by_step.rate(7.5, 64)) == (law != "step")


def test_warmup_rises_linearly_to_the_law() -> None:
    warm, cold = schedule(warmup_epochs=4.0, per="step"), schedule(per="step")
    assert warm.rate(0.0, 64) == 0.0
    assert warm.rate(1.0, 64) == pytest.approx(cold.rate(1.0, 64) / 4)
    assert warm.rate(3.0, 64) == pytest.approx(cold.rate(3.0, 64) * 3 / 4)
    assert warm.rate(4.0, 64) == cold.rate(4.0, 64)


STEPS = 14_659  # updates of an epoch of COCO: 117,266 images with objects, 8 at once


def test_the_rates_of_the_eca_papers_detectors_are_those_of_mmdetection() -> None:
    """Its warm-up: k = (1 - i / 500) (1 - 1/3), lr = regular (1 - k). Its steps: x0.1 after epochs 8 and 11."""
    ours = composition.compose(["experiment=eca_coco"]).build("schedule")

    def rate(step: int) -> float:
        return float(ours.rate(step // STEPS + step % STEPS / STEPS, 8, step))

    expected = [0.01 * (1 - (1 - i / 500) * (1 - 1 / 3)) for i in range(500)] + [0.01] * 100
    assert [rate(i) for i in range(600)] == pytest.approx(expected, rel=1e-12)
    assert [rate(i) for i in (0, 125, 250, 499)] == pytest.approx([0.01 / 3, 0.005, 0.02 / 3, 0.009986666667], rel=1e-9)
    for drop, before, after in ((8, 0.01, 0.001), (11, 0.001, 0.0001)):
        at = drop * STEPS
        assert [rate(at - 1), rate(at), rate(at + 1)] == pytest.approx([before, after, after], rel=1e-12)
    assert rate(12 * STEPS - 1) == pytest.approx(0.0001, rel=1e-12)
    assert ours.clip_grad_norm == 35


@pytest.mark.parametrize("law", ["cosine", "linear"])
def test_a_warmup_in_steps_does_not_depend_on_the_length_of_an_epoch(law: str) -> None:
    warm, cold = schedule(law=law, warmup_steps=20, per="step"), schedule(law=law, per="step")
    for length in (7, 50):
        shares = [warm.rate(i / length, 64, i) / cold.rate(i / length, 64, i) for i in range(30)]
        assert shares == pytest.approx([min(1, i / 20) for i in range(30)])


def test_a_warmup_in_epochs_may_begin_above_zero() -> None:
    warm, cold = schedule(warmup_epochs=4.0, warmup_from=0.25, per="step"), schedule(per="step")
    assert [warm.rate(e, 64) / cold.rate(e, 64) for e in (0, 1, 2, 4, 5)] == pytest.approx([0.25, 0.4375, 0.625, 1, 1])


def test_the_rate_is_scaled_only_where_a_reference_batch_is_given() -> None:
    assert schedule().rate(0, 1024) == 0.1
    assert schedule(lr_reference_batch=256).rate(0, 1024) == pytest.approx(0.4)
    assert schedule(lr_reference_batch=256).rate(0, 64) == pytest.approx(0.025)


def test_a_batch_in_parts_is_still_one_update_of_the_whole_batch() -> None:
    assert schedule(lr_reference_batch=256, accumulate=4).rate(0, 256) == pytest.approx(0.1)


def test_the_optimizer_is_sgd_by_hand() -> None:
    """v = mu v + g + wd w, w = w - lr v, on every trained parameter, norms and biases included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    model[2].bias.requires_grad_(False)
    optimizer = schedule(lr=0.2, momentum=0.8, weight_decay=0.01).optimizer(model)
    hand = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in hand.items()}
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(16, 4).double()).square().mean().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                velocity[name] = 0.8 * velocity[name] + parameter.grad + 0.01 * hand[name]
                hand[name] = hand[name] - 0.2 * velocity[name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), hand[name], rtol=0, atol=1e-14)


OUT_OF_RANGE: list[dict[str, Any]] = [
    *({"lr": 0.0}, {"epochs": 0}, {"momentum": 1.0}, {"law": "poly"}, {"accumulate": 0}),
    *({"clip_grad_norm": 0.0}, {"warmup_from": 1.0}, {"warmup_steps": 0}),
]


@pytest.mark.parametrize("bad", OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ValueError), match=next(iter(bad))):
        schedule(**bad)


class Shifted(nn.Module):
    """A layer with a lambda, a norm and biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.lambda_ = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x)) + self.lambda_


@pytest.mark.parametrize(
    ("patterns", "spared"),
    [
        (None, set()),
        ([], set()),
        (["lambda_"], {"lambda_"}),
        (["bias"], {"layer.bias", "norm.bias"}),
        (["norm.*", "lambda_"], {"norm.weight", "norm.bias", "lambda_"}),
        (["*"], {"layer.weight", "layer.bias", "norm.weight", "norm.bias", "lambda_"}),
    ],
)
def test_weight_decay_spares_the_named_parameters_and_no_other(patterns: list[str] | None, spared: set[str]) -> None:
    """By an update without a gradient: w (1 - lr wd), or w itself."""
    model = Shifted().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = schedule(lr=0.5, weight_decay=0.1, no_decay=patterns).optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] * (1 if name in spared else 0.95), rtol=1e-12, atol=0
        )


def test_frozen_parameters_are_in_no_group() -> None:
    model = Shifted()
    model.lambda_.requires_grad_(False)
    optimizer = schedule(no_decay=["lambda_"]).optimizer(model)
    assert len(optimizer.param_groups) == 1
    assert model.lambda_ not in {p for group in optimizer.param_groups for p in group["params"]}


def test_a_name_that_no_parameter_has_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no parameter is named lambda \(schedule.no_decay\); use names such as lambda_"
    ):
        schedule(no_decay=["lambda"]).optimizer(Shifted())


def test_without_exceptions_the_optimizers_state_is_that_of_one_group() -> None:
    """As before there were exceptions: a checkpoint of then can be continued."""
    model = Shifted()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ours = schedule().optimizer(model)
    assert ours.state_dict() == plain.state_dict()
    ours.load_state_dict(plain.state_dict())
