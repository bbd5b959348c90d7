"""Parts of a batch: the same number in every process, none too small for batch norm; refusals and advice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from attnbench import create_model
from attnbench.base.errors import ConfigError, OutOfMemory
from attnbench.cli import speed
from attnbench.config.configuration import Config
from attnbench.data.dataset import Batch
from attnbench.models import factory
from attnbench.runs import run
from attnbench.training import setup
from attnbench.training.optim import Schedule
from attnbench.training.parts import Division, fewest, number
from attnbench.training.runtime import Runtime
from attnbench.training.step import Update


class OneWeight(nn.Module):
    """A network with one parameter and a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.ones(1)), norm


def shares(batch_size: int, processes: int) -> list[Batch]:
    """The share of a batch that ``Loader`` gives to each process."""
    each = [torch.arange(batch_size)[rank::processes] for rank in range(processes)]
    return [Batch(mine, mine, len(mine) * processes / batch_size) for mine in each]


@pytest.fixture
def sizes() -> Iterator[Callable[[nn.Module, Batch, int], list[int]]]:
    """Computes the sizes of the parts in which an update passes a batch to a model."""
    with Runtime(device="cpu").start() as process:

        def parts(model: nn.Module, batch: Batch, count: int) -> list[int]:
            state = setup.train_state(model, Schedule(law="cosine", epochs=1, lr=0.1), process)
            shown: list[Batch] = []

            def loss(part: Batch) -> Tensor:
                shown.append(part)
                return next(model.parameters()).sum() * part.weight

            Update(state, loss, process, count)(batch)
            assert sum(part.weight for part in shown) == pytest.approx(batch.weight, rel=1e-12)
            assert torch.equal(torch.cat([part.targets for part in shown]), batch.targets)  # type: ignore[arg-type, misc]
            return [len(part.targets) for part in shown]

        yield parts


@pytest.mark.parametrize(("norm", "least"), [(nn.BatchNorm2d(3, affine=False), 2), (nn.LayerNorm(3), 1)])
def test_every_process_makes_as_many_parts_and_none_is_too_small(
    sizes: Callable[[nn.Module, Batch, int], list[int]], norm: nn.Module, least: int
) -> None:
    for processes, count in itertools.product((1, 2, 3), (1, 2, 5, 16)):
        for batch_size in range(2 * processes, 12 * processes):
            each = [sizes(OneWeight(norm), batch, count) for batch in shares(batch_size, processes)]
            share = batch_size // processes
            assert {len(parts) for parts in each} == {min(count, share // least)}
            assert all(min(parts) >= least and max(parts) - min(parts) <= 1 for parts in each)


def test_only_batch_norms_that_train_need_two_samples() -> None:
    norm = nn.BatchNorm2d(3)
    assert fewest(nn.Sequential(norm, nn.LayerNorm(3))) == 2
    norm.eval()
    assert fewest(nn.Sequential(norm, nn.LayerNorm(3))) == 1
    assert fewest(create_model("timm/vit_tiny_patch16_224", num_classes=3)) == 1


@pytest.mark.parametrize("attention", ["sb", "none"])
def test_the_short_last_batch_of_an_epoch_trains_in_parts(attention: str) -> None:
    """Five samples in four parts: a part of one sample would fail in the batch norm inside SB."""
    with Runtime(device="cpu").start() as process:
        model = process.place(create_model("resnet20", attention, num_classes=3))
        state = setup.train_state(model, Schedule(law="cosine", epochs=1, lr=0.1), process)
        update = Update(state, lambda part: model(part.images).square().mean() * part.weight, process, parts=4)
        assert update(Batch(torch.randn(5, 3, 16, 16), torch.zeros(5), 1.0)).isfinite()


DETECTS = ["task=detection", "dataset.train_images=4", "dataset.val_images=2", "detector=mask_rcnn_small"]
TOO_MANY = [
    (["batch_size=3", "schedule.accumulate=2"], 1, "3 samples cannot be split into 2 parts: batch norm needs 2"),
    (["batch_size=64", "schedule.accumulate=33"], 32, "64 samples cannot be split into 33 parts"),
    (["batch_size=67", "schedule.accumulate=17", "runtime.processes=2"], 16, "33 samples in each of 2 processes"),
    ([*DETECTS, "batch_size=4", "schedule.accumulate=3"], 2, "batch norm needs 2 in each part"),
    ([*DETECTS, "detector.norm=frozen", "batch_size=4", "schedule.accumulate=5"], 4, "each part needs one"),
]


@pytest.mark.parametrize(("overrides", "most", "what"), TOO_MANY)
def test_parts_that_no_full_batch_has_are_refused_and_the_most_are_not(
    overrides: list[str], most: int, what: str, compose: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError) as refused:
        run.refuse(compose("runtime.device=cpu", "attention=sb", *overrides))
    assert what in refused.value.what and refused.value.where == "schedule.accumulate"
    assert refused.value.todo == f"use at most {most}"
    run.refuse(compose("runtime.device=cpu", "attention=sb", *overrides, f"schedule.accumulate={most}"))


def test_a_batch_too_small_for_its_processes_is_refused_before_they_start(compose: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"3: batch norm needs 2 samples in every process .*use at least 4"):
        run.refuse(compose("runtime.device=cpu", "batch_size=3", "runtime.processes=2"))


def test_speed_refuses_what_training_does() -> None:
    labels, configs = speed.members(["runtime.device=cpu", "batch_size=4", "schedule.accumulate=3"])
    with pytest.raises(ConfigError, match="use at most 2"):
        speed.measure(labels, configs, ["dataset=digits"], 1, batch_named=True)


@pytest.mark.parametrize(
    ("accumulate", "norm_batch", "batch", "processes", "parts", "images"),
    [
        (1, 64, 256, 1, 4, 64),  # one GPU as four with 64 images each
        (1, 64, 256, 4, 1, 64),
        (1, 64, 256, 8, 1, 32),  # more GPUs than the paper had see fewer
        (8, 64, 256, 1, 8, 32),
        (1, 24, 96, 1, 4, 24),
        (1, 60, 256, 1, 5, 51),
        (2, None, 256, 1, 2, 128),
    ],
)
def test_batch_norm_sees_at_most_as_many_images_as_are_allowed(
    accumulate: int, norm_batch: int | None, batch: int, processes: int, parts: int, images: int
) -> None:
    assert number(accumulate, norm_batch, batch, processes) == parts
    assert Division(batch, processes, parts, fewest=2).norm_images == images
    assert Division(batch, processes, parts, fewest=2, together=processes).norm_images == images * processes
    assert Division(batch, processes, parts, fewest=1).norm_images is None


def test_a_run_computes_batch_norm_over_the_parts_and_says_so(compose: Callable[..., Config]) -> None:
    """norm_batch=8 of batches of 32 gives the weights of accumulate=4, and is no part of the name."""
    words = ["backbone=resnet20", "backbone.depth=8", "dataset.size=4", "batch_size=32", "schedule.epochs=1"]
    plain = compose(*words, "runtime.device=cpu")
    limited = compose(*words, "runtime.device=cpu", "runtime.norm_batch=8")
    assert limited.run_folder == plain.run_folder
    results = [
        run.train(compose(*words, "runtime.device=cpu", "resume=never", override))
        for override in ("runtime.norm_batch=8", "schedule.accumulate=4", "runtime.norm_batch=32")
    ]
    assert [result["norm_images"] for result in results] == [8, 8, 32]
    digests = [result["state_sha256"] for result in results]
    assert digests[0] == digests[1] != digests[2]


ADVICE = [
    (Division(64, 1, 1, fewest=2), "use a smaller batch_size, or schedule.accumulate=2"),
    (Division(64, 1, 4, fewest=2), "use a smaller batch_size, or schedule.accumulate=8"),
    (Division(7, 1, 2, fewest=2), "use a smaller batch_size, or schedule.accumulate=3"),
    (Division(3, 1, 1, fewest=2), "use a smaller batch_size"),
    (Division(3, 1, 1, fewest=1), "use a smaller batch_size, or schedule.accumulate=2"),
    (Division(67, 2, 16, fewest=2), "use a smaller batch_size"),
    (Division(2, 1, 1, fewest=1), "use schedule.accumulate=2"),
    (Division(4, 2, 1, fewest=2), "use smaller images or a smaller network"),
]


@pytest.mark.parametrize(("division", "advice"), ADVICE)
def test_what_is_advised_for_too_little_memory_is_not_refused(division: Division, advice: str) -> None:
    assert division.saving() == advice
    division.refuse()
    if "accumulate=" in advice:
        parts = int(advice.rpartition("=")[2])
        Division(division.batch_size, division.processes, parts, division.fewest).refuse()


def test_a_run_out_of_memory_says_what_would_help_it(
    compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(factory, "network", too_large)
    monkeypatch.setattr(factory, "sketch", lambda *args, **options: (OneWeight(nn.BatchNorm2d(3)), []))
    with pytest.raises(OutOfMemory) as failed:
        run.train(compose("runtime.device=cpu", "batch_size=5", "schedule.accumulate=2"))
    assert str(failed.value) == "out of memory (batch_size); use a smaller batch_size"
