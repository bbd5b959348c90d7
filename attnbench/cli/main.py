"""The entry point of all commands. ``attnbench train`` is the same as ``python train.py``."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches

from attnbench import __version__
from attnbench.base.errors import EARLY, ConfigError, Failure, interrupt, print_error

USAGE = """\
attnbench: which channel attention works, where in the network, and at what cost.

  attnbench train [-m] [key=value ...]   train a run, or a sweep of runs with -m; continue or skip existing runs
  attnbench show [key=value ...]         print the sites of attention as a tree
  attnbench count [-v] [key=value ...]   count parameters and operations, exactly and in the papers' units
  attnbench speed attention=none,se,eca ...   measure training and inference speed and peak memory, in turns
  attnbench table [ID ...] [--plan|--run|--count]   list, plan, run and report the papers' tables
  attnbench compare RUNS ... [--by KEY]  compare runs: what differs, mean and deviation over seeds, a plot
  attnbench figure [ID ...] [--runs ...] draw the papers' figures, and accuracy against cost of any runs
  attnbench eval RUN [--report]          evaluate a run's weights again, on its own or on other data
  attnbench export RUN [--format ...]    write a run's weights as safetensors, ONNX or a plain state dict
  attnbench data check DIR               find what is wrong with a data set before a run does
  attnbench data fetch NAME [DIR]        transfer and unpack a published data set
  attnbench data shard SRC DST           pack an image folder into tar files of WebDataset's form
  attnbench predict RUN picture ...      tell the classes of pictures, or draw the objects in them

`attnbench COMMAND --help` lists a command's options, and `attnbench train --help` lists groups, options and keys.
Arguments `key=value` are overrides, as in Hydra. `attnbench --version` prints the version. Examples:
  attnbench train attention=eca backbone=resnet50 dataset=imagenet dataset.root=/data/imagenet
  attnbench train -m attention=eca attention.kernel_size=3,5,7,9,adaptive seed=0,1,2
"""


def main() -> None:
    """The entry point of ``attnbench``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if arguments[0] in ("-V", "--version"):
        print(f"attnbench {__version__}")
        return
    sys.argv = [f"attnbench {arguments[0]}", *arguments[1:]]
    guarded(lambda: command(arguments[0])())


def guarded(run: Callable[[], object]) -> None:
    """Run a command; an error becomes one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as after nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        run()
    except (Exception, KeyboardInterrupt) as error:
        failure = _failure(error)
        if "debug=true" in sys.argv:
            import traceback

            traceback.print_exception(failure.__cause__ or error)
        print_error(failure)
        sys.exit(failure.code)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, Failure):
        return error
    if isinstance(error.__cause__, Failure):  # Hydra's error around ours
        return error.__cause__
    if isinstance(error, KeyboardInterrupt):
        return EARLY
    if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
        from attnbench.config.complaints import translate

        return translate(error, sys.argv[1:])
    first = (str(error).splitlines() or [""])[0]
    return Failure(f"unexpected {type(error).__name__}: {first}", "attnbench", "debug=true shows the traceback")


COMMANDS = (*("train", "show", "count", "speed", "table", "compare", "figure", "eval", "export", "data", "predict"),)


def command(name: str) -> Callable[[], object]:
    """Import and return the command of this name.

    Raises:
        ConfigError: there is no such command.
    """
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        todo = f"did you mean {close[0]}?" if close else "attnbench --help lists them"
        raise ConfigError(f"unknown command {name}", "command line", todo)
    function: Callable[[], object] = importlib.import_module(f"attnbench.cli.{name}").main
    return function
