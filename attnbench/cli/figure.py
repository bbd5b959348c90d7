"""``attnbench figure``: the papers' figures and those of any runs, listed and drawn."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from attnbench.base import console
from attnbench.base.errors import ConfigError, DataError
from attnbench.cli.parser import Words, seeds
from attnbench.config import hydra_state
from attnbench.reports.figures import paper_figures
from attnbench.reports.figures.paper_figures import Figure
from attnbench.reports.rows import Composer, Listed, choose, listed, warning
from attnbench.runs import results
from attnbench.runs.data import Look
from attnbench.runs.results import Run

GREEDY = ("runs", "scale", "panels", "blocks", "classes")


def main() -> None:
    """``attnbench figure [ID ...] [--runs RUNS ...] [--scale key=value ...] [--output DIR]``."""
    taken = _words()
    composer = Composer([*taken.scale, *taken.overrides], taken.outputs)
    if not taken.ids:
        _list(taken, composer)
    else:
        _draw(taken, composer)


def _draw(taken: argparse.Namespace, composer: Composer) -> None:
    figures = [_narrowed(paper_figures.load(name), taken) for name in taken.ids]
    runs = _given(taken)
    from attnbench.reports.figures import drawing, saving  # and with it torch, when all words are known to be right

    looks = drawing.Looks(taken.which, taken.blocks, taken.images, taken.classes)
    board = _outputs(composer) / "figures"
    for figure in figures:
        picture, title = drawing.draw(figure, runs, composer, taken.seeds, looks)
        for path in saving.save(picture, figure.id, title, taken.output or board, board):
            print(path)


def _given(taken: argparse.Namespace) -> list[Run] | None:
    """The runs of the command line; None if it names none."""
    if not taken.runs:
        return None
    found = results.find(taken.runs)
    kept = [run for run in found if taken.seeds is None or run.seed in taken.seeds]
    if not kept:
        seeds = ", ".join(map(str, sorted({run.seed for run in found})))
        raise DataError("no run of these seeds", "--seeds", f"there are {seeds}")
    return kept


def _outputs(composer: Composer) -> Path:
    key = "paths.outputs="
    given = [word.removeprefix(key) for word in composer.extra if word.startswith(key)]
    return Path(given[-1]) if given else results.outputs()


def _narrowed(figure: Figure, taken: argparse.Namespace) -> Figure:
    return figure.narrowed(taken.panels) if taken.panels else figure


def _words() -> argparse.Namespace:
    words = Words(prog="attnbench figure", description="The papers' figures, and those of any runs.")
    words.add_argument("words", nargs="*", metavar="ID", help="such as eca/4; without one, a list; and key=value")
    words.add_argument("--runs", nargs="+", default=[], help="run folders, folders above them, quoted patterns")
    words.add_argument("--scale", nargs="+", default=[], metavar="key=value", help="another protocol for all rows")
    words.add_argument("--seeds", type=seeds, help="3 for seeds 0, 1, 2; or 0,1,4; default: as many as the paper")
    words.add_argument("--panels", nargs="+", default=[], metavar="NAME", help="some of a figure's panels: x0.35")
    words.add_argument("--which", choices=("last", "best"), default="last", help="weights of which epoch (eca/6, 7)")
    words.add_argument("--blocks", nargs="+", default=[], metavar="NAME", help="other blocks: 2_3 5_1 (eca/6, 7)")
    words.add_argument("--images", nargs="+", type=int, metavar="N", help="other validation images (eca/6)")
    words.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="other classes (eca/7)")
    words.add_argument("--outputs", help="where runs lie; default: outputs, or ATTNBENCH_OUTPUTS")
    words.add_argument("--output", type=Path, metavar="DIR", help="where PNG and PDF go; default: outputs/figures")
    words.add_argument("--json", action="store_true", help="the list as data")
    return _sorted(words.taken())


def _sorted(taken: argparse.Namespace) -> argparse.Namespace:
    """Options take all words that follow; the figures and overrides among these are still what they are."""
    known, words = set(paper_figures.ids()), list(taken.words)
    for name in GREEDY:
        given = getattr(taken, name)
        strays = [word for word in given if word in known or (_is_override(word) and name != "scale")]
        setattr(taken, name, [word for word in given if word not in strays])
        words += strays
    taken.ids = list(dict.fromkeys(word for word in words if not _is_override(word)))
    taken.overrides = [word for word in words if _is_override(word)]
    return taken


def _is_override(word: str) -> bool:
    """``epochs=2``, and not a folder such as ``outputs/k=3``."""
    key, equals, _ = word.partition("=")
    return word.startswith("~") or (bool(equals) and "/" not in key)


# attnbench figure


def _list(taken: argparse.Namespace, composer: Composer) -> None:
    for word in ("runs", "panels", "blocks", "images", "classes", "output"):
        if getattr(taken, word):
            raise ConfigError(f"--{word} of which figure", "command line", "name one, such as eca/4")
    every, changed = [], ""
    done: dict[Path, bool] = {}
    look = Look()
    with hydra_state.prepared():
        for figure in map(paper_figures.load, paper_figures.ids()):
            chosen = choose(figure.table, figure.table.rows, figure.seeds(taken.seeds), composer)
            every.append(listed(chosen, done, look))
            changed = changed or chosen.changed
    if taken.json:
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
