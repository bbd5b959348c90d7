"""``attnbench figure``: list and draw the papers' figures, and figures of any runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from attnbench.base import console
from attnbench.base.errors import ConfigError, DataError
from attnbench.cli.parser import CommandParser, find_ids_and_overrides, seeds
from attnbench.config import hydra_state
from attnbench.reports.composer import Composer
from attnbench.reports.figures import paper_figures
from attnbench.reports.figures.paper_figures import Figure
from attnbench.reports.rows import Listed, choose, listed, warning
from attnbench.runs import results
from attnbench.runs.data import DataCheck
from attnbench.runs.results import Run

GREEDY = ("runs", "scale", "panels", "blocks", "classes")


def main() -> None:
    """``attnbench figure [ID ...] [--runs RUNS ...] [--scale key=value ...] [--output DIR]``."""
    options = _options()
    composer = Composer([*options.scale, *options.overrides], options.outputs)
    if not options.ids:
        _list(options, composer)
    else:
        _draw(options, composer)


def _draw(options: argparse.Namespace, composer: Composer) -> None:
    figures = [_narrowed(paper_figures.load(name), options) for name in options.ids]
    runs = _given(options)
    from attnbench.reports.figures import drawing, saving  # imports torch, so only after the command line is checked

    shown = drawing.FigureOptions(options.which, options.blocks, options.images, options.classes)
    board = _outputs(composer) / "figures"
    for figure in figures:
        picture, title = drawing.draw(figure, runs, composer, options.seeds, shown)
        for path in saving.save(picture, figure.id, title, options.output or board, board):
            console.say(path)


def _given(options: argparse.Namespace) -> list[Run] | None:
    """The runs that the command line names; None without ``--runs``."""
    if not options.runs:
        return None
    found = results.find(options.runs)
    kept = [run for run in found if options.seeds is None or run.seed in options.seeds]
    if not kept:
        seeds = ", ".join(map(str, sorted({run.seed for run in found})))
        raise DataError("no run has these seeds", "--seeds", f"choose from {seeds}")
    return kept


def _outputs(composer: Composer) -> Path:
    key = "paths.outputs="
    given = [override.removeprefix(key) for override in composer.extra if override.startswith(key)]
    return Path(given[-1]) if given else results.outputs()


def _narrowed(figure: Figure, options: argparse.Namespace) -> Figure:
    return figure.narrowed(options.panels) if options.panels else figure


def _options() -> argparse.Namespace:
    parser = CommandParser(prog="attnbench figure", description="The papers' figures, and figures of any runs.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="such as eca/4, and key=value; without an ID, list all")
    parser.add_argument("--runs", nargs="+", default=[], help="run folders, their parent folders, or quoted patterns")
    parser.add_argument("--scale", nargs="+", default=[], metavar="key=value", help="change the setting of all rows")
    parser.add_argument(
        "--seeds", type=seeds, help="3 for seeds 0, 1 and 2, or a list such as 0,1,4 (default: as many as in the paper)"
    )
    parser.add_argument("--panels", nargs="+", default=[], metavar="NAME", help="draw only these panels, such as x0.35")
    parser.add_argument(
        "--which", choices=("last", "best"), default="last", help="weights of this epoch (eca/6, eca/7)"
    )
    parser.add_argument(
        "--blocks", nargs="+", default=[], metavar="NAME", help="draw these blocks: 2_3 5_1 (eca/6, eca/7)"
    )
    parser.add_argument("--images", nargs="+", type=int, metavar="N", help="use these validation images (eca/6)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="draw these classes (eca/7)")
    parser.add_argument("--outputs", help="the folder of runs (default: outputs, or ATTNBENCH_OUTPUTS)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where PNG and PDF go (default: outputs/figures)")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    options = parser.parse()
    find_ids_and_overrides(options, paper_figures.ids(), GREEDY)
    return options


# attnbench figure


def _list(options: argparse.Namespace, composer: Composer) -> None:
    for name in ("runs", "panels", "blocks", "images", "classes", "output"):
        if getattr(options, name):
            raise ConfigError(f"--{name} needs a figure", "command line", "name one, such as eca/4")
    every, changed = [], ""
    done: dict[Path, bool] = {}
    data_check = DataCheck()
    with hydra_state.prepared():
        for figure in map(paper_figures.load, paper_figures.ids()):
            chosen = choose(figure.table, figure.table.rows, figure.seeds(options.seeds), composer)
            every.append(listed(chosen, done, data_check))
            changed = changed or chosen.changed
    if options.json:
        print(json.dumps({"figures": [vars(one) for one in every], "changed_protocol": changed}, indent=2))
    else:
        _print_list(every, changed)


def _print_list(every: Iterable[Listed], changed: str) -> None:
    from rich.table import Table

    drawn = Table("figure", "rows run", "runs done", "title", title=warning(changed) if changed else None)
    for one in every:
        state = (f"{one.cells_run} / {one.cells}", f"{one.runs_done} / {one.runs}") if one.runs else ("", "any runs")
        drawn.add_row(one.id, *state, one.title)
    console.show(drawn)
