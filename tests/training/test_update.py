"""An update recorded as a CUDA graph, compared with one that runs operation by operation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnbench import create_model
from attnbench.data.dataset import Batch
from attnbench.training import setup
from attnbench.training.optim import Schedule
from attnbench.training.runtime import Process, Runtime
from attnbench.training.state import TrainState
from attnbench.training.step import Recorded, Update, recordable, recorded


def prepared(process: Process, attention: str = "sb", clip: float | None = None) -> tuple[TrainState, Update]:
    torch.manual_seed(0)
    model = process.place(create_model("resnet20", attention, num_classes=10))
    schedule = Schedule(law="cosine", epochs=2, lr=0.05)
    state = setup.train_state(model, schedule, process)

    def loss(part: Batch) -> Tensor:
        return F.cross_entropy(model(part.images), part.targets) * part.weight  # type: ignore[arg-type]

    return state, Update(state, loss, process, 1, clip)


def batches(process: Process, sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for size in sizes:
        images = torch.randn(size, 3, 16, 16, generator=generator).to(process.device)
        labels = torch.randint(10, (size,), generator=generator).to(process.device)
        made.append(Batch(images, labels, 1.0))
    return made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_recorded_update_gives_the_weights_of_one_that_is_not() -> None:
    with Runtime(device="cuda", deterministic=True).start() as process:
        ends = []
        for record in (False, True):
            state, update = prepared(process)
            step: Callable[[Batch], Tensor] = recorded(update, "epoch") if record else update
            assert isinstance(step, Recorded) == record
            losses = []
            for epoch in range(2):
                for group in state.optimizer.param_groups:
                    group["lr"] = 0.05 / (1 + epoch)
                losses += [float(step(batch)) for batch in batches(process, [8] * 6 + [3])]
            assert not isinstance(step, Recorded) or step.graph is None  # the last batch was another kind
            ends.append((losses, state.model.state_dict(), state.optimizer.state_dict()["state"]))
    (losses, weights, momentum), (others, other_weights, other_momentum) = ends
    torch.testing.assert_close(losses, others, rtol=1e-5, atol=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=1e-4, atol=1e-5, msg=name)
    for key, entry in momentum.items():
        torch.testing.assert_close(entry["momentum_buffer"], other_momentum[key]["momentum_buffer"])


def test_where_a_step_cannot_be_recorded_it_runs_as_it_is_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with Runtime(device="cpu").start() as process, caplog.at_level(logging.INFO, "attnbench"):
        _, update = prepared(process)
        assert recorded(update, "epoch") is update
    assert "runtime.graph: updates run operation by operation, because there is no CUDA device" in caplog.text


def test_what_changes_between_two_steps_is_not_recorded() -> None:
    with Runtime(device="cpu").start() as process:
        state, _ = prepared(process)
        annealing, _ = prepared(process, "dyconv")

    def elsewhere(**about: object) -> Process:
        return SimpleNamespace(**{"device": torch.device("cuda"), "world_size": 1, "packed": 1} | about)  # type: ignore[return-value]

    assert recordable(state, elsewhere(), "epoch") is None
    assert "every step" in str(recordable(state, elsewhere(), "step"))
    assert "processes" in str(recordable(state, elsewhere(world_size=2), "epoch"))
    assert "pack" in str(recordable(state, elsewhere(packed=2), "epoch"))
    assert "anneals" in str(recordable(annealing, elsewhere(), "epoch"))
    assert "clipped" in str(recordable(state, elsewhere(), "epoch", clip=35.0))
    state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    assert "fp16" in str(recordable(state, elsewhere(), "epoch"))


def test_parts_of_a_batch_add_up_to_one_update() -> None:
    with Runtime(device="cpu").start() as process:
        ends = []
        for parts in (1, 3):
            state, update = prepared(process, "none")
            state.model.eval()  # in training mode, batch norm would depend on the parts
            update.parts = parts
            losses = [float(update(batch)) for batch in batches(process, [7, 6])]
            ends.append((losses, [p.detach() for p in state.model.parameters()]))
            assert all(p.grad is None for p in state.model.parameters())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in tensors))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_are_clipped_to_a_norm_over_all_parameters(parts: int, scale: float | None) -> None:
    """Once for each update, whatever the parts, and without the scale of the loss."""
    with Runtime(device="cpu").start() as process:
        before = [p.detach().clone() for p in prepared(process, "none")[0].model.parameters()]
        ends = {}
        for clip in (None, 0.5, 1e6):
            state, update = prepared(process, "none", clip)
            if scale is not None:
                state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            state.model.eval()
            update.parts = parts
            update(batches(process, [7])[0])
            ends[clip] = [(old - p.detach()) / 0.05 for old, p in zip(before, state.model.parameters(), strict=True)]
            if scale is not None:
                assert state.scaler.get_scale() == scale
    free = ends[None]
    assert norm(free) > 1.0
    torch.testing.assert_close(ends[1e6], free, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[0.5], [one * 0.5 / norm(free) for one in free], rtol=1e-3, atol=1e-4)
