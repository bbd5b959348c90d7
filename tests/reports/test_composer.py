"""Rows that stand on rows: a detector's row starts from the trained network of a classification row."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.base.errors import ConfigError, StorageError
from attnbench.cli import main
from attnbench.config.configuration import Config
from attnbench.reports import paper_tables
from attnbench.reports.composer import Composer
from attnbench.reports.paper_tables import Row
from attnbench.reports.rows import choose, in_order

TINY = [
    *("--scale", "dataset=digits_det", "dataset=digits", "epochs=1", "runtime.device=cpu"),
    *("backbone=resnet20", "backbone.depth=8", "dataset.train_images=8", "dataset.val_images=4"),
    *("detector.hidden=16", "detector.channels=16", "detector.proposals=10", "detector.samples=8"),
    *("eca/2:dataset.size=4", "eca/2:batch_size=512"),
]


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs ``attnbench table`` in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attnbench", "table", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr())

    return call


def row(table: str, label: str) -> Row:
    return next(row for row in paper_tables.load(table).rows if row.label == label)


def composed(composer: Composer, table: str, label: str) -> Config:
    config = composer.row(row(table, label), table)
    assert config is not None
    return config


def test_every_row_of_tables_4_and_5_starts_from_a_network_of_table_2() -> None:
    """Plain from ResNet, SE from SENet, ECA from ECA-Net: same depth, attention and kernels."""
    composer = Composer()
    for table in ("eca/4", "eca/5"):
        for one in paper_tables.load(table).rows:
            config, source = composer.row(one, table), composer.source(one)
            assert config and source and one.weights and one.weights.table == "eca/2"
            assert source.config.choices["experiment"] == "eca_imagenet"
            for group in ("backbone", "attention", "placement"):
                assert source.config.choices[group] == config.choices[group], one.label
            assert source.config.tree["attention"] == config.tree["attention"], one.label
            assert config.tree["backbone"]["weights"] == str(source.config.group_folder)


def test_a_row_with_kernels_of_its_own_starts_from_a_network_with_these_kernels() -> None:
    source = Composer().source(row("eca/5", "ResNet-50 + ECA"))
    assert source and source.label == "eca/2 ECA-Net ResNet-50 with attention.kernel_size=[3,3,7,7]"
    assert source.config.tree["attention"]["kernel_size"] == [3, 3, 7, 7]


def test_runs_are_ordered_after_those_that_they_start_from() -> None:
    table = paper_tables.load("eca/4")
    groups = in_order(choose(table, table.rows[:3], [0, 1], Composer()).runs())
    first, second = ({run.path for run in group} for group in groups)
    assert len(first) == len(second) == 6 and all(run.start and run.start.path in first for run in groups[1])
    assert all(run.start is not None and run.start.seed == run.seed for run in groups[1])
    assert all(run.config.tree["backbone"]["weights"] is None for run in groups[0])


def test_each_row_takes_the_data_set_of_its_task() -> None:
    composer = Composer(["dataset=digits_det", "dataset=digits", "detector.hidden=7", "eca/2:dataset.size=8"])
    detector = composed(composer, "eca/4", "Faster R-CNN ResNet-50")
    source = composer.source(row("eca/4", "Faster R-CNN ResNet-50"))
    assert detector.choices["dataset"] == "digits_det" and detector.tree["detector"]["hidden"] == 7
    assert source and source.config.choices["dataset"] == "digits" and source.config.tree["dataset"]["size"] == 8


@pytest.mark.parametrize(
    ("extra", "changed"),
    [
        ([], ""),
        (["dataset.root=/data/coco", "eca/2:dataset.root=/data/imagenet"], ""),
        (["eca/2:epochs=2", "eca/2:dataset.root=/data"], "eca/2:schedule.epochs=2"),
        (["epochs=2"], "schedule.epochs=2"),
        (["backbone.weights=null"], "backbone.weights=null"),
    ],
    ids=str,
)
def test_a_change_of_the_weights_is_a_change_of_the_protocol(extra: list[str], changed: str) -> None:
    assert Composer(extra).changed([row("eca/4", "Faster R-CNN ResNet-50")], "eca/4") == changed


def test_a_file_keeps_the_title_only_if_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    rows = [row("eca/4", label) for label in ("Faster R-CNN ResNet-50", "Faster R-CNN ResNet-50 + SE")]
    composer = Composer(weights={"senet resnet-50": str(path)})
    assert composer.changed(rows, "eca/4", lambda config: "") == ""
    lacking = composer.changed(rows, "eca/4", lambda config: "without attention")
    assert lacking == f"weights of Faster R-CNN ResNet-50 + SE from {path} (without attention)"
    assert composed(composer, "eca/4", rows[1].label).tree["backbone"]["weights"] == str(path)
    assert composed(composer, "eca/4", rows[0].label).tree["backbone"]["weights"] != str(path)


def test_missing_weights_and_unknown_rows_are_named(tmp_path: Path, table: Call) -> None:
    rows = [row("eca/4", "Faster R-CNN ResNet-50")]
    with pytest.raises(StorageError, match="there is no such run or file of weights"):
        Composer(weights={"ResNet-50": str(tmp_path / "nowhere")}).changed(rows, "eca/4")
    with pytest.raises(ConfigError, match="there is no table eca/9"):
        Composer(["eca/9:epochs=2"])
    plan = ["eca/4", "--plan", "--no-probe", "--rows", rows[0].label, "--weights"]
    for given, line in (
        ("ResNet-5=x", "ResNet-5 names no row that others start from (--weights); name one of eca/2 ResNet-50"),
        ("x", "x does not name weights (--weights); write ROW=RUN or ROW=FILE"),
    ):
        assert table(*plan, given) == (2, "", f"error: {line}\n")


def test_a_chain_runs_from_nothing_by_one_command_and_a_second_one_runs_nothing(tmp_path: Path, table: Call) -> None:
    wanted = ["eca/5", "--rows", "ResNet-50 + SE", "--outputs", str(tmp_path), *TINY]
    code, first, progress = table(*wanted, "--run", "--json")
    begun = [line.partition(" seed 0")[0] for line in progress.splitlines() if line.startswith("done")]
    assert code == 0 and begun == ["done: eca/2 SENet ResNet-50", "done: ResNet-50 + SE"]
    [report] = json.loads(first)["rows"]
    [trace] = report["cells"]["mask_AP"]["runs"]
    [source] = (tmp_path / "runs/digits/resnet20").glob("se-block-*/seed0/result.json")
    digest = json.loads(source.read_text())["state_sha256"]
    assert trace["weights"] == f"digits/resnet20/{source.parent.parent.name} {digest[:8]}"
    code, again, progress = table(*wanted, "--run", "--json")
    assert (code, again) == (0, first) and "started" not in progress
    assert "2 runs: 2 done, 0 to run" in table(*wanted, "--plan", "--no-probe")[1]


def test_a_run_whose_start_fails_fails_with_it(tmp_path: Path, table: Call) -> None:
    wanted = ["eca/5", "--rows", "ResNet-50", "--outputs", str(tmp_path), *TINY, "eca/2:schedule.lr=1e30"]
    code, report, progress = table(*wanted, "--run", "--json")
    assert code == 1 and "2 of 2 runs failed" in progress
    state = json.loads(report)["rows"][0]["cells"]["mask_AP"]["state"]
    assert "eca/2 ResNet-50 seed 0, whose weights this run starts from, failed" in state
    assert not (tmp_path / "runs/digits_det").exists()
