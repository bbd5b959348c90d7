"""``attnbench export RUN``: write a run's weights for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from attnbench.base import console
from attnbench.base.errors import ConfigError
from attnbench.cli.parser import CommandParser
from attnbench.models.checkpoint import Which
from attnbench.runs.export import Format, export
from attnbench.runs.hub import write_hub_folder


def main() -> None:
    """``attnbench export RUN [--format F] [--output FILE] [--hub FOLDER] [--which last|best]``; prints the path."""
    parser = CommandParser(prog="attnbench export", description="Write a run's weights for use elsewhere.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument("--format", choices=get_args(Format), help="default: safetensors")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/export/<which>.<suffix>")
    parser.add_argument(
        "--hub", type=Path, metavar="FOLDER", help="write model card, weights and configuration for the Hub instead"
    )
    parser.add_argument(
        "--which",
        choices=get_args(Which),
        default="last",
        help="last: the weights of result.json's top1; best: those of best_top1 (default: %(default)s)",
    )
    options = parser.parse()
    if options.hub is None:
        console.say(export(options.run, options.format or "safetensors", options.output, options.which))
        return
    if options.format or options.output:
        raise ConfigError("a folder for the Hub has its own format and place", "--hub", "drop --format and --output")
    console.say(write_hub_folder(options.run, options.hub, options.which))
