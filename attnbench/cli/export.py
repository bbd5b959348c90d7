"""``attnbench export RUN``: write a run's weights for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from attnbench.cli.parser import CommandParser
from attnbench.models.checkpoint import Which
from attnbench.runs.export import Format, export


def main() -> None:
    """``attnbench export RUN [--format F] [--output FILE] [--which last|best]``; prints the file's path."""
    parser = CommandParser(prog="attnbench export", description="Write a run's weights for use elsewhere.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument("--format", choices=get_args(Format), default="safetensors", help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/export/<which>.<suffix>")
    parser.add_argument(
        "--which",
        choices=get_args(Which),
        default="last",
        help="last: the weights of result.json's top1; best: those of best_top1 (default: %(default)s)",
    )
    options = parser.parse()
    print(export(options.run, options.format, options.output, options.which))
