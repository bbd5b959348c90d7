"""``attnbench predict RUN picture ...``: ask a finished run about pictures: their classes, or the objects in them."""

from __future__ import annotations

from pathlib import Path

from attnbench.base import console
from attnbench.cli.parser import CommandParser, count
from attnbench.runs.classified import ON_SHEET
from attnbench.runs.predict import SCORE, TOP, Asked, Predicted, predict

MOST_ROWS = 100  # of the printed table


def main() -> None:
    """``attnbench predict RUN picture|folder ... [--top K] [--cam] [--score S] [--polygons] [--output DIR]``."""
    parser = CommandParser(
        prog="attnbench predict",
        description="Ask a finished run about pictures: a classifier for their classes, a detector for the objects.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument("images", metavar="picture", nargs="+", type=Path, help="picture files, or folders of them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/predictions")
    parser.add_argument(
        "--which", choices=("last", "best"), default="last", help="weights of this epoch (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--top", type=count, default=TOP, metavar="K", help="of a classifier: classes told (default: %(default)s)"
    )
    parser.add_argument(
        "--cam", action="store_true", help="of a classifier: draw where it looked (Grad-CAM; attnbench[cam])"
    )
    parser.add_argument(
        "--score", type=float, default=SCORE, help="of a detector: the lowest score drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--polygons", action="store_true", help="of Mask R-CNN: masks as polygons too, besides run lengths"
    )
    given = vars(parser.parse())
    run, images = given.pop("run"), given.pop("images")
    found = predict(run, images, Asked(**given))
    _print(found)
    bad = found.pictures.bad.values()
    for error in bad if len(bad) > 1 else ():
        console.complain(f"left out: {error}")
    found.pictures.refuse_bad()


def _print(found: Predicted) -> None:
    for line in found.lines:
        console.say(line)
    if found.told:
        _print_classes(found)
    for line in found.pictures.left_out:
        console.complain(f"left out: {line}")


def _print_classes(found: Predicted) -> None:
    from rich.table import Table

    most = max(len(one.classes) for one in found.told)
    table = Table("picture", *map(str, range(1, most + 1)))
    for path, classes in found.told[:MOST_ROWS]:
        table.add_row(str(path), *(f"{name} {100 * share:.1f} %" for name, share in classes))
    rest = len(found.told) - MOST_ROWS
    notes = [f"{rest:,} more are in the files"] if rest > 0 else []
    if len(found.told) > ON_SHEET:
        notes.append(f"sheet.png shows the first {ON_SHEET}")
    console.show(table, *notes)
    for path in found.written:
        console.say(path)
