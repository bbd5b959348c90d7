"""The commands. ``attnbench train`` is ``python train.py``; every command takes the same Hydra overrides."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from attnbench.errors import Failure, Stopped

USAGE = """\
attnbench: which channel attention works, where in the network, and at what cost.

  attnbench train [-m] [key=value ...]   train one run, or sweep with -m; continues or skips what is there

Keys are Hydra's: `attnbench train --help` lists groups and options. Examples:
  attnbench train attention=eca backbone=resnet50 dataset=imagenet dataset.root=/data/imagenet
  attnbench train -m attention=eca attention.kernel_size=3,5,7,9,adaptive seed=0,1,2
"""


def main() -> None:
    """The entry point of ``attnbench``."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    command = COMMANDS.get(words[0])
    if command is None:
        from difflib import get_close_matches

        close = get_close_matches(words[0], COMMANDS, 1)
        fail(f"{words[0]} is no command", f"did you mean {close[0]}?" if close else "attnbench --help lists them")
    sys.argv = [f"attnbench {words[0]}", *words[1:]]
    command()


def fail(what: str, todo: str) -> NoReturn:
    print(f"error: {what} (command line); {todo}", file=sys.stderr)
    sys.exit(2)


def train() -> None:
    """Train one run, or a sweep of them."""
    import hydra

    from attnbench import config

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us as they are, not printed by Hydra
    _log_to_stderr()
    run = hydra.main(version_base="1.3", config_path=str(config.folder()), config_name="train")(_member)
    guarded(run)


def _member(cfg: Any) -> Any:
    """One run: alone it raises what goes wrong; in a sweep that becomes its outcome."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from attnbench import config

    whole = OmegaConf.merge({"hydra": HydraConfig.get()}, cfg)
    checked = config.check(whole)  # type: ignore[arg-type]
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        outcome = attempt(checked)
        report(outcome)
        return outcome
    return survived(checked)


def survived(config: Any) -> Any:
    """The outcome of a sweep's member, whatever happens to it; a signal alone ends the sweep."""
    from attnbench.sweep import Outcome

    try:
        return attempt(config)
    except Stopped:
        raise
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return Outcome("failed", str(config.run_folder), reason=str(failure))


def attempt(config: Any) -> Any:
    """Run, or say that the run was done. Torch is imported only if there is something to do.

    Raises:
        Failure: what went wrong.
    """
    from attnbench.folder import RunFolder
    from attnbench.sweep import Outcome

    folder = RunFolder(config.run_folder)
    if config.tree["resume"] == "auto" and (result := folder.result()):
        return Outcome("skipped", str(folder.path), result)
    folder.refuse_busy()
    from attnbench import run

    return Outcome("done", str(folder.path), run.train(config))


def report(outcome: Any) -> None:
    """The closing table of a run."""
    from rich.console import Console
    from rich.table import Table

    from attnbench.recorder import clock

    result = outcome.result
    if os.environ.get("RANK", "0") != "0":
        return
    table = Table(show_header=False, title="done already" if outcome.state == "skipped" else "done")
    table.add_row("top-1, last epoch", f"{result['top1']:.2f} %")
    table.add_row("top-1, best epoch", f"{result['best_top1']:.2f} % (epoch {result['best_epoch']})")
    table.add_row("time", clock(result["seconds"]))
    if result["images_per_s"]:
        table.add_row("training speed", f"{result['images_per_s']:.0f} images/s")
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB")
    table.add_row("parameters, multiply-adds", f"{result['params']:,}, {result['macs']:,}")
    table.add_row("data", result["data"]["source"])
    table.add_row("folder", outcome.folder)
    Console().print(table)


def guarded(run: Callable[[], object]) -> None:
    """Run a command; what goes wrong becomes one line and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    debug = "debug=true" in sys.argv
    try:
        run()
    except Failure as failure:
        _end(failure, debug)
    except KeyboardInterrupt as stop:
        _end(Stopped("stopped before the first step", todo="the same command begins again"), debug, stop)
    except Exception as error:
        from attnbench import config

        _end(config.translate(error, sys.argv[1:]) if _of_hydra(error) else _unexpected(error), debug, error)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _of_hydra(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf")


def _unexpected(error: Exception) -> Failure:
    first = (str(error).splitlines() or [""])[0]
    return Failure(f"unexpected {type(error).__name__}: {first}", "attnbench", "debug=true shows the traceback")


def _end(failure: Failure, debug: bool, cause: BaseException | None = None) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exception(cause or failure)
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {failure}", file=sys.stderr)
    sys.exit(failure.code)


def _log_to_stderr() -> None:
    logger = logging.getLogger("attnbench")
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


COMMANDS: dict[str, Callable[[], None]] = {"train": train}
