"""The commands. ``attnbench train`` is ``python train.py``; every command takes the same Hydra overrides."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from attnbench.errors import EARLY, ConfigError, Failure, Stopped, interrupt, main_process, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from attnbench.attempt import Outcome

USAGE = """\
attnbench: which channel attention works, where in the network, and at what cost.

  attnbench train [-m] [key=value ...]   train one run, or sweep with -m; continues or skips what is there
  attnbench show [key=value ...]         where attention goes: the tree of sites
  attnbench count [-v] [key=value ...]   parameters and operations, exact and in the papers' units
  attnbench speed attention=none,se,eca ...   training and inference speed, members in turn, and peak memory
  attnbench table [ID ...] [--plan|--run|--count]   the papers' tables: what is there, what is missing, the report
  attnbench compare PATTERN [--by KEY]   what differs between runs: mean and deviation over seeds, a plot
  attnbench figure [ID ...] [--runs ...] the papers' figures, and accuracy against cost of any runs
  attnbench eval RUN [--which best]      a run's weights once more over its validation split
  attnbench export RUN [--format ...]    a run's weights as safetensors, ONNX or a plain state dict
  attnbench data check DIR               what is wrong with a data set, before a run finds it
  attnbench data shard SRC DST           an image folder as a few large files with checksums
  attnbench predict RUN image ...        pictures with the boxes and masks that a run's detector finds

Keys are Hydra's: `attnbench train --help` lists groups and options. Examples:
  attnbench train attention=eca backbone=resnet50 dataset=imagenet dataset.root=/data/imagenet
  attnbench train -m attention=eca attention.kernel_size=3,5,7,9,adaptive seed=0,1,2
"""


def main() -> None:
    """The entry point of ``attnbench``."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    sys.argv = [f"attnbench {words[0]}", *words[1:]]
    guarded(lambda: command(words[0])())


def train() -> None:
    """Train one run, or a sweep of them; what goes wrong in a single run is raised."""
    import hydra

    from attnbench import config, launcher
    from attnbench.recorder import log_to_stderr

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us as they are, not printed by Hydra
    logging.getLogger("attnbench").setLevel(logging.INFO if main_process() else logging.ERROR)
    log_to_stderr()
    sys.argv[1:] = sorted(sys.argv[1:], key=_is_override)  # argparse wants them in one piece
    config.offer_timm(sys.argv[1:])
    launcher.register()
    alone: list[Outcome] = []
    run = hydra.main(version_base="1.3", config_path=str(config.folder()), config_name="train")
    run(lambda cfg: _member(cfg, alone))()
    for outcome in alone:
        report(outcome)


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _member(cfg: DictConfig, alone: list[Outcome]) -> Outcome:
    """A run of its own, whose outcome is put into ``alone``, or a sweep's member, whose outcome is returned."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from attnbench.attempt import attempt
    from attnbench.config import check

    hydra = HydraConfig.get()
    outcome = attempt(lambda: check(OmegaConf.merge({"hydra": hydra}, cfg)))  # type: ignore[arg-type]
    if hydra.mode != RunMode.MULTIRUN:
        alone.append(outcome)
    elif outcome.failure:
        say(outcome.failure)
        if outcome.state == "stopped":  # the whole sweep
            sys.exit(Stopped.code)
    return outcome


def report(outcome: Outcome) -> None:
    """The closing table of a run.

    Raises:
        Failure: why there is none.
    """
    if outcome.failure:
        raise outcome.failure
    if not main_process():
        return
    from rich.console import Console
    from rich.table import Table

    from attnbench.measures import TITLES
    from attnbench.recorder import clock

    result = outcome.result or {}
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
    table.add_row("data", result["data"]["source"])
    console = Console()
    console.print(table)
    console.print(outcome.folder, soft_wrap=True, highlight=False)


def guarded(run: Callable[[], object]) -> None:
    """Run a command; what goes wrong becomes one line and an exit code."""
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else nobody shall hear it, as after nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        run()
    except (Exception, KeyboardInterrupt) as error:
        failure = _failure(error)
        if "debug=true" in sys.argv:
            import traceback

            traceback.print_exception(failure.__cause__ or error)
        say(failure)
        sys.exit(failure.code)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, Failure):
        return error
    if isinstance(error.__cause__, Failure):  # Hydra's words around ours
        return error.__cause__
    if isinstance(error, KeyboardInterrupt):
        return EARLY
    if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
        from attnbench.config import translate

        return translate(error, sys.argv[1:])
    first = (str(error).splitlines() or [""])[0]
    return Failure(f"unexpected {type(error).__name__}: {first}", "attnbench", "debug=true shows the traceback")


COMMANDS = {
    "train": "attnbench.cli.train",
    "show": "attnbench.inspection.show",
    "count": "attnbench.inspection.count",
    "speed": "attnbench.speed.speed",
    "table": "attnbench.tabling.table",
    "compare": "attnbench.compare.compare_command",
    "figure": "attnbench.figuring.figure_command",
    "eval": "attnbench.evaluation.eval_command",
    "export": "attnbench.export.export_command",
    "data": "attnbench.curation.data",
    "predict": "attnbench.prediction.predict_command",
}


def command(word: str) -> Callable[[], object]:
    """The command of a name; its module is imported now and not before.

    Raises:
        ConfigError: there is none.
    """
    if word not in COMMANDS:
        close = get_close_matches(word, COMMANDS, 1)
        todo = f"did you mean {close[0]}?" if close else "attnbench --help lists them"
        raise ConfigError(f"{word} is no command", "command line", todo)
    module, _, name = COMMANDS[word].rpartition(".")
    function: Callable[[], object] = getattr(importlib.import_module(module), name)
    return function
