"""From a figure and its runs to a picture and its title, for each kind of figure.

The runs are those that lie where the rows' configurations say, or given ones that fit the rows. What makes them other
than the paper's is in the title, as the tables put it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.base.errors import ConfigError, DataError
from attnbench.config import hydra_state
from attnbench.config.configuration import Config
from attnbench.config.naming import NEUTRAL
from attnbench.models import factory
from attnbench.models.checkpoint import Which
from attnbench.reports import counts
from attnbench.reports.comparison import compare, provenance
from attnbench.reports.figures import channels, curves, hooks, lambdas, plane, sweep
from attnbench.reports.figures.matching import differences, matched
from attnbench.reports.figures.paper_figures import Figure
from attnbench.reports.paper_tables import Row
from attnbench.reports.report import changed_images, report, source_of
from attnbench.reports.rows import Chosen, Composer, choose, seeded
from attnbench.runs import results
from attnbench.runs.load import FREE, Trained, load_run, ready
from attnbench.runs.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

log = logging.getLogger("attnbench")

Drawn = tuple["Picture", str]  # and its title


@dataclass(frozen=True)
class FigureOptions:
    """Which weights, blocks, images and classes a figure shows of networks, where they are other than its own.

    Attributes:
        which: weights of the last or the best epoch.
        blocks: names of blocks; the figure's if empty.
        images: numbers of validation images; evenly spaced ones if None.
        classes: names of classes in the data; the figure's if empty.
    """

    which: Which = "last"
    blocks: list[str] = field(default_factory=list)
    images: list[int] | None = None
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A figure that is to be drawn.

    Attributes:
        runs: given ones; None for those that lie where the rows say.
        chosen: its rows with their runs.
    """

    figure: Figure
    runs: Sequence[Run] | None
    composer: Composer
    seeds: list[int] | None
    options: FigureOptions

    def chosen(self) -> Chosen:
        """The rows with their runs."""
        table = self.figure.table
        with hydra_state.prepared():
            if self.runs is not None:
                return matched(table, self.runs, self.composer)
            return choose(table, table.rows, self.figure.seeds(self.seeds), self.composer)

    def otherwise(self) -> list[str]:
        """Where data lie and what computes: the only overrides that a trained network takes."""
        keys = {override: override.partition("=")[0] for override in self.composer.extra}
        return [override for override, key in keys.items() if key in NEUTRAL and key.split(".")[0] in FREE]


def draw(
    figure: Figure, runs: Sequence[Run] | None, composer: Composer, seeds: list[int] | None, options: FigureOptions
) -> Drawn:
    """A figure.

    Args:
        runs: given ones; None for those that lie where the rows say.
        composer: composes rows, with what the command line adds to them.
        seeds: those that there should be; None for as many as the paper's.

    Raises:
        ConfigError: runs that do not fit, a network without what the figure shows.
        DataError: no run to show.
    """
    return KINDS[figure.kind](Asked(figure, runs, composer, seeds, options))


def _cells(asked: Asked) -> Drawn:
    """Cells of tables, printed and ours."""
    chosen = asked.chosen()
    configs = {row.label: composed for row, composed in chosen.rows if composed}
    made = report(chosen, lambda row: _counted(asked.figure, row, configs.get(row.label)), {})
    picture = plane.draw(asked.figure, made) if asked.figure.kind == "plane" else curves.draw(asked.figure, made)
    return picture, made.title


def _counted(figure: Figure, row: Row, composed: Config | None) -> dict[str, counts.CountedCell]:
    if composed is None:
        return {}
    return counts.cells(figure.table, row, factory.counting_sketch, lambda _: composed)


def _costs(asked: Asked) -> Drawn:
    """Any runs in the plane of accuracy and costs."""
    if asked.runs is None:
        raise ConfigError(f"{asked.figure.id} of which runs", "--runs", "give folders or a quoted pattern")
    comparison = compare(asked.runs)
    title = f"{asked.figure.title}: {comparison.common}"
    unfinished = [f"not finished: {folder}: {why}" for folder, why in comparison.unfinished]
    return sweep.costs(comparison, title, [*comparison.notes, *unfinished]), title


def _lambdas(asked: Asked) -> Drawn:
    """What became of lambda in given runs, or in those of the figure's row."""
    figure, [row] = asked.figure, asked.figure.table.rows
    with hydra_state.prepared():
        chosen = choose(figure.table, [row], asked.seeds, asked.composer)
    if asked.runs is None:
        runs = [results.read(run.path) for run in chosen.runs() if (run.path / "config.yaml").is_file()]
        if not runs:
            raise _nothing(chosen)
    else:
        runs = list(asked.runs)
        composed = asked.composer(row.overrides or [])
        chosen = replace(chosen, changed=differences([(results.told(composed), run) for run in runs]))
    made = lambdas.learned(runs)
    chosen = _with_images(chosen, [run.result for run in runs])
    notes = [
        lambdas.note(made),
        *provenance(runs),
        *(f"{run.folder}: {run.state}" for run in runs if not run.result),
        *figure.notes,
    ]
    return lambdas.draw(made, chosen.title, notes, bool(chosen.changed)), chosen.title


def _squeezes(asked: Asked) -> Drawn:
    """What attention reads of single images."""
    chosen = asked.chosen()
    [(row, composed)] = chosen.rows
    network = _network(asked, chosen, composed)
    if network is None:
        raise _nothing(chosen)
    chosen = _with_images(chosen, [network.about["result"]])
    here, lacking = _blocks(asked, network)
    with ready(network) as opened:
        numbers = asked.options.images
        if numbers is None:
            numbers = hooks.spaced(asked.figure.images, len(opened.data.val))
        made = hooks.squeezed(opened, here, numbers)
        notes = [_of(row.label, network, opened.data.source), f"validation images {', '.join(map(str, numbers))}"]
    notes += ["r: mean correlation over channels between the values of two images", *_lacking(network, lacking)]
    picture = channels.squeezes(made, chosen.title, [*notes, *asked.figure.notes], bool(chosen.changed))
    return picture, chosen.title


def _weights(asked: Asked) -> Drawn:
    """The weights that attention gives to channels, by class."""
    chosen = asked.chosen()
    layers: list[channels.Layer] = []
    notes: list[str] = []
    classes: dict[str, str] = {}
    for row, composed in chosen.rows:
        network = _network(asked, chosen, composed)
        if network is None:
            layers.append(channels.Layer(row.label, None, "not run"))
            continue
        chosen = _with_images(chosen, [network.about["result"]])
        here, lacking = _blocks(asked, network)
        with ready(network) as opened:
            made = hooks.mean_weights(opened, here, f"weights of {network.config.choices['attention']}")
            notes += [_of(row.label, network, opened.data.source), *_lacking(network, lacking)]
        layers.append(channels.Layer(network.config.choices["attention"], made))
        classes = classes or _classes(asked, made)
    if not classes:
        raise _nothing(chosen)
    images = next(layer.weights.images for layer in layers if layer.weights)
    notes.append(f"means over the {images:,} validation images; all classes: the mean of the classes' means")
    picture = channels.weights(layers, classes, chosen.title, [*notes, *asked.figure.notes], bool(chosen.changed))
    return picture, chosen.title


def _blocks(asked: Asked, network: Trained) -> tuple[list[hooks.Block], list[str]]:
    """The blocks that are shown, and those of the figure that the network lacks."""
    here, lacking = hooks.blocks(network, asked.options.blocks or asked.figure.blocks)
    if lacking and asked.options.blocks:
        have = ", ".join(block.name for block in hooks.blocks(network, [])[0])
        raise ConfigError(f"no attention at block {lacking[0]}", "--blocks", f"there is at {have}")
    return here, lacking


def _classes(asked: Asked, made: hooks.Weights) -> dict[str, str]:
    """The classes that are drawn: those asked for, the figure's where the data have them, else evenly spaced ones."""
    wanted = asked.options.classes
    if wanted:
        if unknown := [name for name in wanted if name not in made.classes]:
            some = ", ".join(made.classes[:12])
            raise ConfigError(f"there is no class {unknown[0]}", "--classes", f"there are {some}")
        return {name: f"class {name}" for name in wanted}
    if set(asked.figure.classes) <= set(made.classes) and asked.figure.classes:
        return asked.figure.classes
    numbers = hooks.spaced(4, len(made.classes))
    return {made.classes[number]: f"class {made.classes[number]}" for number in numbers}


def _network(asked: Asked, chosen: Chosen, composed: Config | None) -> Trained | None:
    """The trained network of a row, of the first seed that has one."""
    folders = [seeded(composed, seed).run_folder for seed in chosen.seeds] if composed else []
    found = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    return load_run(found, asked.options.which).told(asked.otherwise()) if found else None


def _with_images(chosen: Chosen, found: Iterable[Mapping[str, Any] | None]) -> Chosen:
    """What was done to the images of runs is a change of the protocol too, as in reports."""
    data = [what for result in found if (what := changed_images(source_of(result or {})))]
    new = [f"data {what}" for what in dict.fromkeys(data) if f"data {what}" not in chosen.changed]
    return replace(chosen, changed=", ".join(filter(None, [chosen.changed, *new])))


def _nothing(chosen: Chosen) -> DataError:
    """That no run is there: where it would lie."""
    first = next((run.path for run in chosen.runs()), Path())
    return DataError(f"{chosen.table.id} has no run to show", first, "train it, or give --runs")


def _of(label: str, network: Trained, source: str) -> str:
    """What a network is and what it was trained on, in a line."""
    c, about = network.config.choices, network.about["checkpoint"]
    result = network.about["result"] or {}
    top1 = f", top-1 {result['top1']:.2f} %" if "top1" in result and about["which"] == "last" else ""
    which = f"{about['which']} weights, after epoch {about['epoch']} of {network.config.tree['schedule']['epochs']}"
    return f"{label} is here {c['attention']} in {c['backbone']}, seed {network.config.seed}, {which}{top1}; {source}"


def _lacking(network: Trained, names: Sequence[str]) -> list[str]:
    return [f"{network.config.choices['backbone']} has no attention at {', '.join(names)}"] if names else []


KINDS: dict[str, Callable[[Asked], Drawn]] = {
    "plane": _cells,
    "curves": _cells,
    "costs": _costs,
    "lambdas": _lambdas,
    "squeezes": _squeezes,
    "weights": _weights,
}
