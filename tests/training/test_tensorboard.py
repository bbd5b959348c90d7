"""A sweep in TensorBoard: one table of hparams, the same few tags, and names that readers can distinguish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from attnbench.config import composition, hydra_state, option_files
from attnbench.runs import run

TINY = ("runtime.device=cpu", "backbone=resnet20", "dataset.size=4", "batch_size=512", "schedule.epochs=1")
METRICS = {
    *("train/loss", "train/lr", "val/top1", "val/top5", "val/loss"),
    *("perf/images_per_s", "perf/data_time_share"),
}

Groups = list[tuple[list[str], int]]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 2 x 2: no attention, an attention with a kernel size; two seeds each."""
    outputs = tmp_path_factory.mktemp("outputs")
    for overrides in (["attention=none"], ["attention=eca", "attention.kernel_size=3"]):
        for seed in range(2):
            run.train(composition.compose([*TINY, *overrides, f"seed={seed}", f"paths.outputs={outputs}"]))
    return outputs


@pytest.fixture(scope="module")
def shown(swept: Path) -> tuple[EventMultiplexer, backend_context.Context]:
    """The sweep as TensorBoard reads it."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(swept)).Reload()
    provider = MultiplexerDataProvider(runs, str(swept))
    seen = TBContext(logdir=str(swept), multiplexer=runs, data_provider=provider)
    return runs, backend_context.Context(seen)


def table(shown: backend_context.Context) -> tuple[Any, Any]:
    """The columns and the lines of the HParams tab."""
    request = context.RequestContext()
    metadata = shown.hparams_metadata(request, "")
    given = shown.hparams_from_data_provider(request, "", None)
    columns = shown.experiment_from_metadata(request, "", True, metadata, given)
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(hparam=info.name) for info in columns.hparam_infos]
        + [api_pb2.ColParams(metric=info.name) for info in columns.metric_infos],
    )
    lines = list_session_groups.Handler(request, shown, "", asked).run()
    return columns, lines.session_groups


def test_a_sweep_is_one_table_with_every_hparam_and_metric(
    shown: tuple[EventMultiplexer, backend_context.Context],
) -> None:
    columns, lines = table(shown[1])
    names = {info.name for info in columns.hparam_infos}
    assert {"attention", "attention.kernel_size", "backbone", "seed", "schedule.lr"} <= names
    assert {info.name for info in columns.hparam_infos if info.differs} >= {"attention", "seed"}
    assert {info.name.tag for info in columns.metric_infos} == METRICS
    assert len(lines) == 4
    for line in lines:
        assert {value.name.tag for value in line.metric_values} == METRICS
    kinds = sorted((line.hparams["attention"].string_value, line.hparams["seed"].number_value) for line in lines)
    assert kinds == [("eca", 0), ("eca", 1), ("none", 0), ("none", 1)]
    sizes = {line.hparams["attention.kernel_size"].number_value for line in lines} - {0.0}
    assert sizes == {3.0}


def test_runs_are_named_by_what_differs_and_have_the_same_few_tags(
    shown: tuple[EventMultiplexer, backend_context.Context],
) -> None:
    runs, _ = shown
    names = sorted(runs.Runs())
    assert [name.rpartition("/tb/")[2].partition(",batch_size=512")[0] for name in names[:2]] == ["kernel_size=3"] * 2
    assert all(name.startswith("runs/digits/resnet20/") and "/seed" in name for name in names)
    assert all("size=4" in name and "epochs=1" in name for name in names)
    assert {frozenset(runs.GetAccumulator(name).Tags()["tensors"]) - METRICS for name in names} == {
        frozenset(
            {"config/text_summary", "sites/text_summary", "_hparams_/session_start_info", "_hparams_/session_end_info"}
        )
    }


GROUPS = ("schedule", "runtime", "task")


def test_unchanged_options_are_not_listed_as_changes() -> None:
    with hydra_state.prepared():
        for group in GROUPS:
            for option in option_files.names(group):
                assert composition.compose([f"{group}={option}"]).changes == {}, option
        for option in ("eca_released", "gsop"):
            assert composition.compose([f"attention={option}"]).changes == {}, option
        for option in option_files.names("experiment"):
            assert composition.compose([f"experiment={option}", "attention=sb"]).changes == {}, option
        for option in option_files.names("detector"):
            assert composition.compose(["task=detection", f"detector={option}"]).changes == {}, option


def test_options_that_a_command_line_changes_are_listed() -> None:
    overrides = ["experiment=sb_cifar10", "attention=sb", "attention.gate=relu", "placement.roles=[C1]"]
    overrides += ["batch_size=64"]
    neutral = ["seed=3", "dataset.root=/data", "runtime.device=cpu"]
    changed = composition.compose([*overrides, *neutral]).changes
    assert list(changed.items()) == [("placement.roles", ["C1"]), ("attention.gate", "relu"), ("batch_size", 64)]
    assert composition.compose(["backbone=timm/resnet18"]).changes == {}
