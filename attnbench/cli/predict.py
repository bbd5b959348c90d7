"""``attnbench predict RUN image ...``: pictures with what a run's detector finds in them, and the same as data."""

from __future__ import annotations

from pathlib import Path

from attnbench.cli.parser import Words
from attnbench.runs.predict import SCORE, predict


def main() -> None:
    """``attnbench predict RUN image ... [--output DIR] [--score S] [--which last|best]``; prints the files' paths."""
    words = Words(prog="attnbench predict", description="Pictures with boxes, masks, classes and scores.")
    words.add_argument("run", metavar="RUN", type=Path, help="the folder of a run of task=detection")
    words.add_argument("images", metavar="image", nargs="+", type=Path, help="JPEG or PNG files")
    words.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/predictions")
    words.add_argument(
        "--score", type=float, default=SCORE, help="the least score that is drawn (default: %(default)s)"
    )
    words.add_argument("--which", choices=("last", "best"), default="last", help="weights (default: %(default)s)")
    taken = words.taken()
    for path in predict(taken.run, taken.images, output=taken.output, score=taken.score, which=taken.which):
        print(path)
