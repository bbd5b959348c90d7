"""``attnbench eval RUN``: evaluate a run's weights again, on its validation split or on other data."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from attnbench.base import console
from attnbench.base.errors import ConfigError, DataError
from attnbench.cli.parser import CommandParser
from attnbench.data.matching import Matching, class_map
from attnbench.models.checkpoint import Which
from attnbench.runs.evaluate import Evaluation, data_of, evaluated, saved
from attnbench.runs.load import class_names

SHOWN = 40  # maximum number of classes in the printed table


def main() -> None:
    """``attnbench eval RUN [key=value ...] [--which last|best] [--class-map ...] [--report] [--json]``."""
    options = _parsed()
    matching = Matching(
        class_map(options.class_map, class_names(options.run)) if options.class_map else {},
        options.common_classes,
        options.answers,
    )
    own = options.report and options.which == "last" and not options.overrides and not options.class_map
    evaluation = saved(options.run) if own else None
    evaluation = evaluation or evaluated(options.run, options.which, options.overrides, matching)
    if options.json:
        found = evaluation.found
        print(json.dumps({key: None if value != value else value for key, value in found.items()}, indent=2))
    else:
        _print(evaluation.found)
    if options.report:
        _report(evaluation, options)


def _parsed() -> argparse.Namespace:
    parser = CommandParser(prog="attnbench eval", description="Evaluate a run's weights again on its validation split.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as dataset.root=DIR or runtime.device=cpu"
    )
    parser.add_argument(
        "--which", choices=get_args(Which), default="last", help="weights of this epoch (default: %(default)s)"
    )
    parser.add_argument(
        "--class-map",
        metavar="FILE",
        help="which class of the data is which of the run: a JSON object, or lines of two names; or the word "
        "'numbers', if folder 0 is the run's first class, as in ImageNet-V2",
    )
    parser.add_argument(
        "--common-classes", action="store_true", help="if the data lack classes or have others, evaluate on the rest"
    )
    parser.add_argument(
        "--answers",
        choices=("common", "all"),
        default="common",
        help="with --common-classes: among which classes the network chooses (default: %(default)s)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="show and write accuracy or AP by class, the confusion matrix, calibration and the most wrong pictures",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (default: RUN/report)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse()


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, title=f"{found['which']} weights, after epoch {found['epoch']}")
    for name, value in found.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.3f}" if math.isfinite(value) else str(value))
    for name, value in found.get("sets", {}).items():
        table.add_row(f"top1 of {name}", f"{value:.3f}")
    table.add_row("images", f"{found['images']:,}")
    table.add_row("data", found["data"]["source"])
    notes = [f"evaluated: {found['evaluated']}"]
    if found["same_data"] is False:
        notes.append("these are not the data that the run was trained and evaluated on")
    if found["changed"]:
        notes.append(f"CHANGED PROTOCOL: {', '.join(found['changed'])}; the run evaluates differently")
    console.show(table, *notes)


def _report(evaluation: Evaluation, options: argparse.Namespace) -> None:
    from attnbench.reports.evaluation import class_table, write

    if evaluation.predictions is None:
        raise ConfigError("this run's task does not tell its predictions", "--report", "give it a method answers")
    notes, data = [], evaluation.data
    if data is None:
        try:
            data = data_of(options.run)
        except DataError as error:
            notes.append(f"without the most wrong pictures: {error}")
    written = write(evaluation, options.output or _folder(evaluation, options), data)
    if options.json:
        return
    table = class_table(evaluation.predictions, evaluation.found)
    _print_classes(table.columns, table.rows, notes)
    for path in written:
        console.say(path)


def _print_classes(columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: list[str]) -> None:
    """The table of classes; of many, those with the lowest accuracy or AP."""
    from rich.table import Table

    measure = columns.index("accuracy" if "accuracy" in columns else "AP")
    if len(rows) > SHOWN:
        rows = sorted((row for row in rows if row[measure] is not None), key=lambda row: row[measure])[:SHOWN]
        notes = [f"the {SHOWN} classes with the lowest {columns[measure]}; all are in classes.csv", *notes]
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(_cell, row))
    console.show(table, *notes)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _folder(evaluation: Evaluation, options: argparse.Namespace) -> Path:
    """``RUN/report``, and a folder in it for other weights and for other data."""
    found, folder = evaluation.found, options.run / "report"
    if options.which != "last":
        folder /= options.which
    if found["same_data"] is False or found["changed"] or options.class_map:
        name = re.sub(r"[^\w.-]+", "_", found["data"]["source"].split(",")[0])[:40]
        return folder / f"{name}-{found['data']['fingerprint'][:8]}"
    return folder
