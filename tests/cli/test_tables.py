"""Tables: running what is missing, and reporting the results."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from torch import nn

from attnbench.base import escape, files
from attnbench.base.errors import ConfigError
from attnbench.cli import main
from attnbench.config import catalog, composition
from attnbench.config.configuration import Config
from attnbench.models import complexity, factory
from attnbench.reports import counts, formats, paper_tables, plan, statistics, writing
from attnbench.reports.composer import Composer
from attnbench.reports.report import report, tally
from attnbench.reports.rows import Chosen, RowRun, choose, matching, seeded
from attnbench.runs.status import RunStatus, folder_status
from tests.conftest import ROOT

SCALED = ("--scale", "dataset=digits", "epochs=1", "dataset.size=8")
PACKED = ("hydra.launcher.pack=auto",)
PAIR = ("--rows", "SE x0.35 C1", "SB x0.35 C1")
CHANGED = "CHANGED PROTOCOL: dataset=digits, schedule.epochs=1, dataset.size=8; not the paper's setting"

RunTable = Callable[..., str]


def command(outputs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``attnbench table`` in a new process."""
    called = [sys.executable, str(ROOT / "tests" / "attnbench_command.py"), "table", *arguments]
    environment = os.environ | {"ATTNBENCH_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    return subprocess.run(called, capture_output=True, text=True, env=environment, cwd=outputs.parent, timeout=240)


@pytest.fixture
def run_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> RunTable:
    """Runs ``attnbench table`` in this process and returns what it prints; runs are in the test's folder."""

    def call(*arguments: str, outputs: Path = tmp_path / "outputs") -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench table", *arguments, "--outputs", str(outputs)])
        capsys.readouterr()
        main.command("table")()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two rows with two seeds each, trained; the runs of a row are one pack."""
    outputs = tmp_path_factory.mktemp("table") / "outputs"
    return outputs, command(outputs, "sb/5", "--run", "--seeds", "2", *PACKED, *SCALED, *PAIR)


Leave = Callable[..., Path]


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Writes what a run with these overrides would have left."""

    def done(overrides: list[str], seed: int, top1: float | None = None, failed: str = "") -> Path:
        composed = composition.compose([*overrides, f"paths.outputs={tmp_path}/outputs"])
        folder = seeded(composed, seed).run_folder
        folder.mkdir(parents=True, exist_ok=True)
        if failed:
            files.write_json(folder / "status.json", {"status": "failed", "error": failed, "code": 6})
            return folder
        result = {"status": "done", "top1": top1, "best_top1": (top1 or 0) + 1, "epochs": 200, "seed": seed}
        files.write_json(folder / "result.json", result | {"data": {"source": "image folder (JPEG: lossy)"}})
        files.write_json(folder / "env.json", {"commit": "c0ffee", "device": "a card"})
        return folder

    return done


def row(table: str, label: str) -> paper_tables.Row:
    return next(row for row in paper_tables.load(table).rows if row.label == label)


def overrides(table: str, label: str) -> list[str]:
    return row(table, label).overrides or []


SE, SB = overrides("sb/5", "SE x0.35 C1"), overrides("sb/5", "SB x0.35 C1")


# From the command line to every report


def test_a_table_is_run_and_reported(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    outputs, done = ran
    assert done.returncode == 0, done.stderr
    assert [json.loads(path.read_text())["packed"] for path in outputs.rglob("result.json")] == [2] * 4
    assert CHANGED in done.stdout.splitlines()[0] and CHANGED in done.stderr
    assert done.stdout.count("(n=2) to SE x0.35 C1") == 1


def test_a_second_run_of_a_table_trains_nothing(
    ran: tuple[Path, subprocess.CompletedProcess[str]], run_table: RunTable
) -> None:
    outputs, first = ran
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*")}
    assert run_table("sb/5", "--run", "--seeds", "2", *SCALED, *PAIR, outputs=outputs) == first.stdout
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*")} == before


@pytest.mark.parametrize("form", formats.FORMATS)
def test_each_format_says_what_was_changed_and_what_came_out(
    form: str, ran: tuple[Path, subprocess.CompletedProcess[str]], run_table: RunTable
) -> None:
    text = run_table("sb/5", "--seeds", "2", *SCALED, *PAIR, "--format", form, outputs=ran[0])
    plain = text.replace("&#x27;", "'")
    assert CHANGED in plain
    assert text.count("SE x0.35 C1") >= 2 and "90.980" in text
    made = json.loads(run_table("sb/5", "--seeds", "2", *SCALED, *PAIR, "--json", outputs=ran[0]))
    mean = made["rows"][0]["cells"]["top1"]["mean"]
    assert f"{mean:.3f}" in text or str(mean) in text
    if form not in ("csv",):
        assert "UCI handwritten digits" in text


def test_a_cell_can_be_traced_to_its_runs(
    ran: tuple[Path, subprocess.CompletedProcess[str]], run_table: RunTable
) -> None:
    made = json.loads(run_table("sb/5", "--seeds", "2", *SCALED, *PAIR, "--json", outputs=ran[0]))
    cell = made["rows"][1]["cells"]["top1"]
    results = [json.loads((Path(run["folder"]) / "result.json").read_text()) for run in cell["runs"]]
    made_by = [json.loads((Path(run["folder"]) / "env.json").read_text()) for run in cell["runs"]]
    assert [run["value"] for run in cell["runs"]] == [result["top1"] for result in results]
    assert [run["seed"] for run in cell["runs"]] == [0, 1]
    assert [run["config_hash"] for run in cell["runs"]] == [result["config_hash"] for result in results]
    assert [(run["commit"], run["device"]) for run in cell["runs"]] == [(m["commit"], m["device"]) for m in made_by]
    assert cell["mean"] == cell["ours"] == pytest.approx(sum(r["top1"] for r in results) / 2)
    assert cell["std"] == pytest.approx(abs(results[0]["top1"] - results[1]["top1"]) / math.sqrt(2))
    assert made["rows"][1]["cells"]["params"]["ours"] == results[0]["params"] == 1_091_498


def test_a_member_that_fails_is_shown_with_its_reason(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    scale = (*SCALED, "schedule.lr=1e30")
    done = command(outputs, "sb/5", "--run", "--seeds", "1", *scale, "--rows", "SE x0.35 C1", "--json")
    assert done.returncode == 1
    assert "1 of 1 runs failed" in done.stderr
    state = json.loads(done.stdout)["rows"][0]["cells"]["top1"]["state"]
    assert state.startswith("failed: the loss became nan") and state.endswith("(seed 0)")


def test_images_that_were_changed_are_in_every_title(run_table: RunTable, leave: Leave) -> None:
    folder = leave(SB, 0, 90.0)
    result = json.loads((folder / "result.json").read_text())
    source = "image folder of 10 classes, 9 + 9 images; changed protocol: resized to shorter side 40"
    result["data"] = {"source": source, "fingerprint": "0123456789"}
    files.write_json(folder / "result.json", result)
    named = "CHANGED PROTOCOL: data resized to shorter side 40; not the paper's setting"
    for form in formats.FORMATS:
        text = run_table("sb/5", "--seeds", "1", "--rows", "SB x0.35 C1", "--format", form)
        assert named in text.replace("&#x27;", "'"), form
    assert "CHANGED" not in run_table("sb/5", "--seeds", "1", "--rows", "SE x0.35 C1")


# Numbers


VALUES = [91.2, 90.8, 91.05, 92.0, 91.4]
OTHERS = [90.1, 90.9, 90.0, 91.1, 90.7]


def test_mean_and_sample_standard_deviation_are_those_by_hand() -> None:
    found = statistics.spread([1.0, 2.0, 4.0])
    assert found is not None and found.n == 3
    assert (found.mean, found.std) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert statistics.spread([5.0]) == statistics.Spread(5.0, None, 1)
    assert statistics.spread([]) is None


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_is_scipys(n: int) -> None:
    found = statistics.paired(dict(enumerate(VALUES[:n])), dict(enumerate(OTHERS[:n])))
    theirs = stats.ttest_rel(VALUES[:n], OTHERS[:n]).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_pairs_are_made_by_seed_and_only_of_seeds_that_both_have() -> None:
    found = statistics.paired({0: 3.0, 1: 5.0, 4: 9.0}, {4: 8.0, 0: 1.0, 2: 100.0})
    assert found is not None and (found.mean, found.seeds) == (1.5, [0, 4])
    half = 12.706204736432095 * math.sqrt(0.5) / math.sqrt(2)  # t(1, 0.975), std of 2 and 1
    assert (found.low, found.high) == pytest.approx((1.5 - half, 1.5 + half))
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.filterwarnings("error")
def test_equal_differences_have_an_interval_of_no_width_and_are_no_warning() -> None:
    found = statistics.paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert found is not None and (found.low, found.high) == (1.0, 1.0)


# The contents of a report


def cells(run_table: RunTable, *arguments: str) -> dict[str, dict[str, Any]]:
    made = json.loads(run_table(*arguments, "--json"))
    return {line["label"]: line | line["cells"]["top1"] for line in made["rows"]}


def test_a_report_has_printed_ours_difference_and_the_paired_one(run_table: RunTable, leave: Leave) -> None:
    for seed, (ours, other) in enumerate(zip(VALUES, OTHERS, strict=True)):
        leave(SB, seed, ours)
        leave(SE, seed, other)
    found = cells(run_table, "sb/5", "--rows", "SB x0.35 C1")["SB x0.35 C1"]  # the baseline is not among the rows
    assert (found["printed"], found["printed_std"], found["unit"], found["state"]) == ("90.826", "0.117", "%", "done")
    assert found["mean"] == pytest.approx(91.29) and found["n"] == 5
    assert found["difference"] == pytest.approx(91.29 - 90.826)
    assert found["best"]["mean"] == pytest.approx(92.29)
    theirs = stats.ttest_rel(VALUES, OTHERS).confidence_interval(0.95)
    assert found["paired"]["baseline"] == "SE x0.35 C1"
    assert found["paired"]["top1"]["ci95"] == [pytest.approx(theirs.low), pytest.approx(theirs.high)]
    text = run_table("sb/5", "--rows", "SB x0.35 C1")
    for part in ("91.290 ± 0.453 (n=5)", "+0.464", "92.290 ± 0.453 (n=5)", "+0.730 [", "to SE x0.35 C1"):
        assert part in text
    for part in ("image folder (JPEG: lossy) (5 runs)", "c0ffee (5 runs)", "a card (5 runs)", "last epoch"):
        assert part in text


def test_speeds_beside_printed_ones_are_those_of_training_and_evaluation(run_table: RunTable, leave: Leave) -> None:
    folder = leave(overrides("eca/2", "ResNet-50"), 0, 75.0)
    left = json.loads((folder / "result.json").read_text())
    measured = {"images_per_s": 500.0, "written_images_per_s": 1400.0, "val_images_per_s": 1500.0}
    files.write_json(folder / "result.json", left | measured)
    (line,) = json.loads(run_table("eca/2", "--rows", "ResNet-50", "--json"))["rows"]
    found = {name: (line["cells"][name]["printed"], line["cells"][name]["mean"]) for name in ("train_fps", "infer_fps")}
    assert found == {"train_fps": ("1024", 500.0), "infer_fps": ("1855", 1400.0)}
    assert line["cells"]["infer_fps"]["folded"]["mean"] == 1500.0


def test_a_missing_seed_is_a_visible_gap_and_a_failure_has_its_reason(run_table: RunTable, leave: Leave) -> None:
    for seed in (0, 1, 4):
        leave(SE, seed, 90.0 + seed)
    leave(SE, 2, failed="out of memory (batch_size); use a smaller batch_size")
    for form in ("text", "md", "csv", "html"):
        text = run_table("sb/5", "--rows", "S? x0.35 C1", "--format", form)
        assert "3 of 5 seeds: 0, 1, 4" in text
        assert "failed: out of memory (batch_size); use a smaller batch_size (seed 2)" in text
        assert "not run (seed 3)" in text
    found = cells(run_table, "sb/5", "--rows", "S? x0.35 C1")
    assert found["SE x0.35 C1"]["n"] == 3
    assert found["SB x0.35 C1"]["state"] == "not run" and found["SB x0.35 C1"]["mean"] is None


def test_a_single_seed_has_no_spread(run_table: RunTable, leave: Leave) -> None:
    leave(SE, 0, 90.0)
    leave(SB, 0, 91.0)
    text = run_table("sb/5", "--seeds", "1", "--rows", "S? x0.35 C1")
    assert "91.000 (n=1)" in text and "+1.000 (n=1) to SE x0.35 C1" in text
    assert "91.000 ±" not in text


def test_a_run_of_one_table_is_a_run_of_the_others(run_table: RunTable, leave: Leave) -> None:
    leave(overrides("sb/5", "SB x0.35 C1+C2+C3"), 3, 91.5)
    for name, label in (("sb/6", "SB x0.35"), ("sb/8", "SB x0.35 lambda 0.1"), ("sb/10", "SB hidden x1")):
        assert cells(run_table, name, "--rows", label)[label]["mean"] == 91.5


def test_seeds_beyond_the_papers_count_unless_seeds_are_named(run_table: RunTable, leave: Leave) -> None:
    for seed in (0, 7):
        leave(SE, seed, 90.0)
    arguments = ("sb/5", "--rows", "SE x0.35 C1")
    assert cells(run_table, *arguments)["SE x0.35 C1"]["n"] == 2
    assert cells(run_table, *arguments, "--seeds", "1")["SE x0.35 C1"]["n"] == 1


def test_a_failure_that_no_folder_could_hold_is_shown(compose: Callable[..., Config]) -> None:
    one = paper_tables.load("sb/5")
    chosen = choose(one, one.rows[:1], [0], Composer([f"paths.outputs={compose().tree['paths']['outputs']}"]))
    (run,) = chosen.runs()
    made = report(chosen, lambda row: {}, {run.path: "cannot write: No space left on device"})
    assert made.lines[0].cells["top1"].state == "failed: cannot write: No space left on device (seed 0)"


def test_a_run_that_was_killed_is_stopped_and_one_that_is_held_is_running(tmp_path: Path) -> None:
    files.write_json(tmp_path / "status.json", {"status": "running"})
    assert folder_status(tmp_path) == RunStatus("stopped", "its process ended without reporting why")
    holder = "import sys; from pathlib import Path; from attnbench.runs.folder import RunFolder\n"
    holder += "with RunFolder(Path(sys.argv[1])).hold(): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout and process.stdout.readline() == b"held\n"
    assert folder_status(tmp_path).state == "running"
    process.communicate()


def test_what_made_runs_is_counted() -> None:
    assert tally(["c0ffee", "decaf", "c0ffee"]) == "c0ffee (2 runs); decaf (1 run)"


def test_a_csv_has_a_line_for_each_cell(run_table: RunTable, leave: Leave) -> None:
    leave(SE, 0, 90.0)
    lines = list(csv.DictReader(io.StringIO(run_table("sb/5", "--rows", "x0.35 C1", "--format", "csv"))))
    assert len(lines) == 6 * 2  # C1, C1+C3 and C1+C2+C3 of SE and SB
    assert (lines[1]["row"], lines[1]["column"], lines[1]["ours"], lines[1]["seeds"]) == (
        "SE x0.35 C1",
        "top1",
        "90.0",
        "0",
    )


def test_latex_and_html_escape_what_they_must(run_table: RunTable) -> None:
    latex = run_table("sb/5", "--rows", "SE x0.35 C1", "--format", "latex")
    lines = [line for line in latex.splitlines() if not line.startswith("%")]
    assert any("\\%" in line for line in lines)
    assert all(line.replace("\\%", "").count("%") == 0 for line in lines)
    assert escape.latex("a_b\\c^2 {5 %}") == r"a\_b\textbackslash{}c\^{}2 \{5 \%\}"
    assert "&lt;module&gt;" in formats.page([]) + writing.html_table(["<module>"], [])[1]


def test_several_tables_make_a_list_and_a_file_takes_them(run_table: RunTable, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.json"
    assert run_table(
        "sb/8", "sb/9", "--rows", "SB x0.35 tanh", "SB x0.35 lambda 0.1", "--json", "--output", str(target)
    )
    assert [made["id"] for made in json.loads(target.read_text())] == ["sb/8", "sb/9"]


def test_each_network_of_a_row_is_built_once_for_all_its_counts() -> None:
    built: list[str] = []

    def sketch(composed: Config) -> tuple[nn.Module, complexity.Size]:
        built.append(composed.choices["attention"])
        return factory.counting_sketch(composed)

    found = counts.cells(paper_tables.load("sb/1"), row("sb/1", "SB x0.35"), sketch)
    assert list(found) == ["params", "madds", "madds_added"] and built == ["sb", "none"]


# Choosing rows and seeds


def labels(tables: list[str], *patterns: str) -> list[str]:
    found = matching([paper_tables.load(name) for name in tables], patterns)
    return [row.label for rows in found.values() for row in rows]


def test_a_pattern_fits_whole_labels_first_and_then_parts_of_them() -> None:
    assert labels(["sb/5"], "se x0.35 c1") == ["SE x0.35 C1"]
    assert labels(["sb/5"], "SB x0.35*") == ["SB x0.35 C1", "SB x0.35 C1+C3", "SB x0.35 C1+C2+C3"]
    assert labels(["sb/5"], "x1.0 C1+C3") == ["SE x1.0 C1+C3", "SB x1.0 C1+C3"]
    assert labels(["sb/10", "sb/6"], "hidden x1", "static x0.5") == ["SB hidden x1", "static x0.5"]
    assert len(labels(["sb/5"])) == 24
    with pytest.raises(ConfigError, match=r"no row matches eca.*SE x0\.35 C1, "):
        labels(["sb/5"], "eca")


def test_arguments_may_come_in_any_order(run_table: RunTable) -> None:
    ordered = run_table("sb/5", "--plan", "--no-probe", *PAIR, *SCALED, "runtime.device=cpu")
    mixed = run_table("--plan", *PAIR, "runtime.device=cpu", "--no-probe", *SCALED, "sb/5")
    assert ordered == mixed and "10 runs: 0 done" in mixed and CHANGED in mixed


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["epochs=2"], "schedule.epochs=2"),
        (["epochs=200"], ""),  # what the paper has
        (["runtime.device=cpu", "runtime.workers=0", "paths.outputs=elsewhere", "dataset.root=/data"], ""),
        (["runtime.device=cpu", "runtime.precision=bf16"], "runtime.precision=bf16"),
    ],
)
def test_what_makes_another_run_is_a_changed_protocol(arguments: list[str], changed: str) -> None:
    assert Composer(arguments).changed([row("sb/5", "SE x0.35 C1")]) == changed


def test_an_experiments_option_of_another_data_set_is_left_out_and_named() -> None:
    composer = Composer(["dataset=digits"])
    assert composer(overrides("sb/1", "SB x0.35")).choices["dataset"] == "digits"
    assert composer.changed([row("sb/1", "SB x0.35")]) == "dataset=digits, without dataset.resize_mode"
    with pytest.raises(ConfigError, match=r"attention\.lambda_init"):  # the row's own override is not left out
        Composer(["attention=se"])(overrides("sb/8", "SB x0.35 lambda 0.01"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sb/5", "--seeds", "x"), "--seeds"),
        (("sb/5", "--seeds", "0"), "--seeds"),
        (("sb/5", "seed=3"), "--seeds 3"),
        (("sb/5", "--scale", "epochs"), "key=value"),
        (("sb/5", "--scale", "epohcs=2"), "epohcs"),
        (("sb/5", "--launcher", "ship"), "ship"),
        (("sb/5", "--run", "hydra.launcher.slotz=2"), "did you mean hydra.launcher.slots?"),
        (("sb/5", "--run", "--launcher", "ray", "hydra.launcher.num_gpus=1.5"), "a fraction of one GPU"),
        (("sb/5", "--run", "--launcher", "ray", "hydra/launcher=pool"), "use only one of them"),
        (("sb/5", "--run", "hydra/launcher=basic"), "pool"),
        (("sb/55",), "sb/5"),
        (("--run",), "needs a table"),
        (("sb/5", "--plan", "--no-probe", "--scale", "placement.stages=[9]"), "SE x0.35 C1: "),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(
    arguments: tuple[str, ...], message: str, run_table: RunTable
) -> None:
    with pytest.raises(ConfigError) as refused:
        run_table(*arguments)
    assert message in str(refused.value)


# Plan and list


def test_the_cifar_tables_plan_345_runs_and_sb8_alone_100(run_table: RunTable) -> None:
    made = json.loads(run_table(*(f"sb/{n}" for n in range(5, 11)), "--plan", "--no-probe", "--json"))
    assert (made["runs"], made["to_run"]) == (345, 345)
    assert {member["params"] for member in made["members"] if member["label"] == "SB x1.0 lambda 1.0"} == {10_319_614}
    assert "100 runs: 0 done, 100 to run" in run_table("sb/8", "--plan", "--no-probe")


def test_a_plan_says_what_is_done_and_what_failed(run_table: RunTable, leave: Leave) -> None:
    leave(SE, 0, 90.0)
    leave(SE, 3, failed="out of memory")
    text = run_table("sb/5", "--plan", "--no-probe", "--rows", "SE x0.35 C1", *("--seeds", "4"))
    assert "done: seed 0; not run: seed 1, 2; failed (out of memory): seed 3" in text
    assert "1,088,890 parameters" in text and "4 runs: 1 done, 3 to run" in text


def planned(*arguments: str, seeds: int = 1, state: str = "not run") -> list[plan.PlannedRun]:
    composed = composition.compose(arguments)
    return [plan.PlannedRun(RowRun("one", seeded(composed, seed)), RunStatus(state), 1) for seed in range(seeds)]


def test_an_estimate_counts_epochs_images_and_evaluation() -> None:
    probed: list[Config] = []

    def probe(composed: Config) -> plan.Speed:
        probed.append(composed)
        return plan.Speed(0.01, 8)

    eca = planned("attention=eca", "schedule.epochs=3", seeds=2) + planned("attention=eca", "attention.kernel_size=5")
    done = planned("attention=se", state="done")
    found = plan.estimate([*eca, *done], probe, lambda composed: (300, 90))
    assert len(probed) == found.probed == 1
    assert found.hours == pytest.approx((3 + 3 + 6) * 0.01 * (300 + 90 / 3) / 3600)
    assert plan.estimate(eca, probe, lambda composed: None).unknown == ["one"]


def test_the_probe_does_three_real_steps_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from attnbench.runs import probe

    steps: list[int] = []
    step = torch.optim.SGD.step

    def counted(self: torch.optim.SGD, *args: Any) -> Any:
        steps.append(1)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    seconds, batch = probe.seconds_per_image(
        composition.compose(["attention=eca", "batch_size=16", "runtime.device=cpu"])
    )
    assert 0 < seconds < 1 and batch == 16 and len(steps) == 4


def test_the_numbers_of_images_are_those_of_the_data() -> None:

    digits = composition.compose([]).build("dataset")
    assert catalog.IMAGES["digits"] == (len(digits.train), len(digits.val))
    assert set(catalog.IMAGES) == set(catalog.CLASSES)


def test_the_list_has_seventeen_tables_and_their_states(run_table: RunTable, leave: Leave) -> None:
    for seed in range(5):
        leave(overrides("sb/5", "SB x0.35 C1+C2+C3"), seed, 91.0)
    leave(SE, 2, 91.0)
    made = json.loads(run_table("--json"))
    tables = {one["id"]: one for one in made["tables"]}
    assert len(tables) == 17 and {"eca/later", "sb/choices"} <= set(tables)
    assert not any(one["needs"] for one in tables.values())
    assert (tables["sb/5"]["cells_run"], tables["sb/5"]["cells"]) == (1, 24)
    assert (tables["sb/5"]["runs_done"], tables["sb/5"]["runs"]) == (6, 120)
    assert tables["sb/8"]["runs_done"] == tables["sb/10"]["runs_done"] == 5
    assert made["runs_done"] == 6


def test_chosen_tables_keep_the_papers_title_without_a_change(compose: Callable[..., Config]) -> None:
    one = paper_tables.load("sb/8")
    chosen: Chosen = choose(one, one.rows[:1], None, Composer())
    assert chosen.title == "sb/8: Initial lambda of SB, MobileNetV2 on CIFAR-10 (arXiv:2103.13080, Table 8)"
    assert chosen.seeds == [0, 1, 2, 3, 4]


# The tally


def test_the_tally_takes_no_table(run_table: RunTable) -> None:
    with pytest.raises(ConfigError, match="--tally counts all tables as printed"):
        run_table("sb/5", "--tally")
