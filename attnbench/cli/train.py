"""``attnbench train``: train one run, or a sweep of runs with ``-m``; the same as ``python train.py``."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from attnbench.base import console
from attnbench.base.console import clock
from attnbench.base.errors import ConfigError, StorageError, main_process, print_error
from attnbench.cli.parser import is_override, searched
from attnbench.config import option_files

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from attnbench.runs.attempt import Outcome


def main() -> None:
    """Train one run, or a sweep of runs; the failure of a single run is raised."""
    import hydra

    from attnbench.config import hydra_state
    from attnbench.launch import hydra_launchers
    from attnbench.training.recorder import log_to_stderr

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    logging.getLogger("attnbench").setLevel(logging.INFO if main_process() else logging.ERROR)
    log_to_stderr()
    sys.argv[1:] = sorted(sys.argv[1:], key=is_override)  # argparse needs all overrides in one piece
    _add_option_files()
    hydra_launchers.register()
    alone: list[Outcome] = []
    run = hydra.main(version_base=hydra_state.VERSION_BASE, config_path=str(option_files.folder()), config_name="train")
    with hydra_state.prepared(), hydra_state.lent_to_hydra():
        run(lambda cfg: _member(cfg, alone))()
    for outcome in alone:
        report(outcome)


def _add_option_files() -> None:
    """Add the folders of option files that the command line names; refuse what would replace attnbench's own.

    Raises:
        ConfigError: there is no such folder, or an option that attnbench does not have.
    """
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_args()
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(given, name):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"there is no {option}", "command line", "give your own option files with --config-dir")
    option_files.add([given.config_dir] if given.config_dir else [])
    option_files.add(searched(given.overrides)[0], "hydra.searchpath")


def _member(cfg: DictConfig, alone: list[Outcome]) -> Outcome:
    """Train one run and return its outcome; a run outside of a sweep is also appended to ``alone``."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from attnbench.config.composition import check
    from attnbench.runs.attempt import attempt

    hydra = HydraConfig.get()
    outcome = attempt(lambda: check(OmegaConf.merge({"hydra": hydra}, cfg)))  # type: ignore[arg-type]
    if hydra.mode != RunMode.MULTIRUN:
        alone.append(outcome)
    elif outcome.failure:
        print_error(outcome.failure)
    return outcome


def report(outcome: Outcome) -> None:
    """Print the result table of a run.

    Raises:
        Failure: the run's failure, if it has no result.
    """
    if outcome.failure:
        raise outcome.failure
    if not main_process():
        return
    from rich.table import Table

    from attnbench.training.metrics.titles import TITLES

    result = outcome.result or {}
    needed = ("seconds", "images_per_s", "peak_memory_bytes", "params", "macs", "data")
    if lacking := [key for key in needed if key not in result]:
        todo = "remove the file and run the command again: the last checkpoint gives it again"
        raise StorageError(f"result.json lacks {', '.join(lacking)}", outcome.folder, todo)
    table = Table(show_header=False, title="done already" if outcome.state == "skipped" else "done")
    for name, title in TITLES.items():
        if name in result:
            table.add_row(f"{title}, last epoch", f"{result[name]:.2f} %")
        if f"best_{name}" in result:
            table.add_row(f"{title}, best epoch", f"{result[f'best_{name}']:.2f} % (epoch {result['best_epoch']})")
    table.add_row("time", clock(result["seconds"]))
    if result["images_per_s"]:
        table.add_row("training speed", f"{result['images_per_s']:.0f} images/s")
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB")
    table.add_row("parameters", f"{result['params']:,}")
    table.add_row("multiply-adds", f"{result['macs']:,} an image")
    table.add_row("data", str(result["data"].get("source", "")))
    console.show(table, str(outcome.folder))
