"""``attnbench predict RUN image ...``: draw what a run's detector finds in images, and write it as JSON."""

from __future__ import annotations

from pathlib import Path

from attnbench.cli.parser import CommandParser
from attnbench.runs.predict import SCORE, predict


def main() -> None:
    """``attnbench predict RUN image ... [--output DIR] [--score S] [--which last|best]``; prints the files' paths."""
    parser = CommandParser(
        prog="attnbench predict", description="Draw a detector's boxes and masks; write them as JSON."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run with task=detection")
    parser.add_argument("images", metavar="image", nargs="+", type=Path, help="JPEG or PNG files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/predictions")
    parser.add_argument(
        "--score", type=float, default=SCORE, help="the lowest score that is drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--which", choices=("last", "best"), default="last", help="weights of this epoch (default: %(default)s)"
    )
    options = parser.parse()
    for path in predict(options.run, options.images, output=options.output, score=options.score, which=options.which):
        print(path)
