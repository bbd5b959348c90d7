"""``hydra/launcher=ray`` on a real cluster of two nodes, each with room for one member."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config.composition import compose
from attnbench.launch import hydra_launchers
from attnbench.launch.executor import Member
from attnbench.launch.ray_cluster import LauncherContext, Ray, watch_over
from tests.conftest import ROOT
from tests.small_runs import wait_for
from tests.sweeps import (
    FIFTY,
    Sweep,
    above,
    assert_members_save_when_their_launcher_is_killed,
    assert_survives_its_members,
    long,
)

pytest.importorskip("ray", reason="the launcher's extra, attnbench[ray], is not installed")

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # authentication would write a token to the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        nodes.add_node(**NODE)
        yield nodes.address
        nodes.shutdown()


@pytest.fixture
def sweep(cluster: str, tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, "hydra/launcher=ray", f"hydra.launcher.address={cluster}")


def test_one_failed_member_never_touches_the_others(sweep: Sweep) -> None:
    assert_survives_its_members(sweep, 7, {"unexpected ZeroDivisionError": 1, "killed by SIGKILL": 1})
    assert list((sweep.folder / "outputs").glob(".launcher-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_members_of_which_ten_fail(sweep: Sweep) -> None:
    assert_survives_its_members(sweep, 50, FIFTY)


def test_a_member_whose_worker_is_lost_goes_on_and_a_signal_stops_both_nodes(sweep: Sweep) -> None:
    process = sweep.start(*long("0,1", epochs=200))
    sweep.training(2)
    pids = [status["pid"] for status in sweep.statuses()]
    assert len({above(pid, 3) for pid in pids}) == 2  # member, fork server, worker, raylet: both nodes work
    os.kill(above(pids[0], 2), signal.SIGKILL)
    wait_for(lambda: sweep.resumed() == [0, 1])
    process.terminate()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert [s["status"] for s in sweep.statuses()] == ["stopped", "stopped"]


@pytest.mark.slow
def test_members_that_a_signal_stopped_end_although_a_worker_is_lost(sweep: Sweep) -> None:
    overrides = long("0,1", epochs=12)
    process = sweep.start(*overrides)
    sweep.training(2)
    process.terminate()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert [s["status"] for s in sweep.statuses()] == ["stopped", "stopped"]

    process = sweep.start(*overrides)
    wait_for(lambda: sweep.resumed() == [1, 1])
    os.kill(above(sweep.statuses()[0]["pid"], 2), signal.SIGKILL)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "2 done, 0 skipped, 0 failed" in out
    assert err.count("started: ") == 2
    assert sweep.resumed() == [1, 2]


@pytest.mark.slow
def test_members_of_a_launcher_that_is_killed_save_and_end(sweep: Sweep) -> None:
    assert_members_save_when_their_launcher_is_killed(sweep)


def test_a_table_runs_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    options = ["sb/5", "--run", "--rows", "SE x0.35 C1", "--seeds", "1", "--launcher", "ray"]
    options += ["hydra.launcher.slots=1"]
    options += ["--scale", "dataset=digits", "epochs=1", "dataset.size=8", "dataset.pad=0", "runtime.device=cpu"]
    variables = {"ATTNBENCH_OUTPUTS": str(tmp_path), "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | variables
    command = [sys.executable, "-m", "attnbench", "table", *options]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 1
    assert "SE x0.35 C1" in ended.stdout


def member(*overrides: str) -> Member:
    return Member("one", compose(list(overrides)))


@pytest.mark.parametrize(
    ("wanted", "there", "overrides", "gpus", "processes"),
    [
        (None, 0, [], 0, None),
        (None, 4, [], 1, None),
        (None, 4, ["runtime.processes=2"], 2, 2),
        (None, 4, ["runtime.device=cpu", "runtime.processes=2"], 0, 2),
        (0.25, 4, [], 0.25, None),
        (2.0, 4, [], 2, 2),
        (4.0, 4, ["runtime.processes=2"], 4, 2),
        (0.0, 4, [], 0, None),
    ],
)
def test_a_member_has_a_gpu_for_each_process_and_a_process_for_each_gpu(
    wanted: float | None, there: int, overrides: list[str], gpus: float, processes: int | None
) -> None:
    one = member(*overrides)
    before = one.folder.path
    assert Ray(num_gpus=wanted).gpus_of(one, there) == gpus
    assert one.processes == processes
    assert one.folder.path == before


def test_processes_that_would_share_a_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.num_gpus"):
        Ray(num_gpus=0.5).gpus_of(member("runtime.processes=2"), 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.launcher.num_gpus=1.5"], "a whole number, or a fraction of one"),
        (["hydra.launcher.num_gpus=-1"], ">= 0"),
        (["hydra.launcher.num_gpu=1"], "did you mean hydra.launcher.num_gpus?"),
        (["hydra.launcher.slots=many"], "hydra.launcher.slots"),
    ],
)
def test_a_bad_option_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        hydra_launchers.chosen(["hydra/launcher=ray", *overrides])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_node_that_does_not_see_the_folders_says_so(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    for folder, mark in (("/nowhere", "mark"), (str(tmp_path), "other")):
        outcome = watch_over(compose([]), LauncherContext(folder, tmp_path / mark, {}), 1, False)
        assert isinstance(outcome.failure, StorageError) and "all nodes share" in outcome.failure.todo


WITHOUT = """
import sys
sys.modules["ray"] = sys.modules["submitit"] = None
sys.argv[1:] = sys.argv[1:]
from attnbench.cli import train
from attnbench.cli.main import guarded
guarded(train.main)
"""


@pytest.mark.parametrize(("name", "extra"), [("ray", "ray"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")])
def test_a_missing_package_costs_one_line_that_names_it(tmp_path: Path, name: str, extra: str) -> None:
    command = [sys.executable, "-c", WITHOUT, "-m", f"hydra/launcher={name}", "seed=0,1"]
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert ended.returncode == 2
    lines = ended.stderr.decode().splitlines()
    assert len(lines) == 1 and f"pip install attnbench[{extra}]" in lines[0]
    assert list(tmp_path.iterdir()) == []
