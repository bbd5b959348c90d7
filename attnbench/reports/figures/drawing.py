"""Draw a figure of any kind from its runs, with a title.

The runs lie in the folders that the rows' configurations name, or are given and matched to the rows. The title names
all changes to the paper's setting, as in the tables.
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
from attnbench.reports.composer import Composer
from attnbench.reports.figures import channels, curves, hooks, lambdas, plane, sweep
from attnbench.reports.figures.matching import differences, matched
from attnbench.reports.figures.paper_figures import Figure
from attnbench.reports.paper_tables import Row
from attnbench.reports.report import changed_images, report, source_of
from attnbench.reports.rows import Chosen, choose, seeded
from attnbench.runs import results
from attnbench.runs.load import FREE, Trained, load_run, ready
from attnbench.runs.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

log = logging.getLogger("attnbench")

UNFINISHED = 4  # at most so many unfinished runs are named below a picture

Drawn = tuple["Picture", str]  # and its title


@dataclass(frozen=True)
class FigureOptions:
    """The weights, blocks, images and classes to show instead of the figure's own.

    Attributes:
        which: ``last`` or ``best``, the epoch whose weights are shown.
        blocks: names of blocks; if empty, the figure's own.
        images: indices of validation images; if None, evenly spaced ones.
        classes: names of classes in the data; if empty, the figure's own.
    """

    which: Which = "last"
    blocks: list[str] = field(default_factory=list)
    images: list[int] | None = None
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A figure to draw, with what the command line says about it.

    Attributes:
        runs: the given runs; None for the runs in the folders of the rows' configurations.
        composer: composes the rows.
        seeds: the seeds of each row; None for the paper's number of seeds.
        options: which parts of networks are shown.
    """

    figure: Figure
    runs: Sequence[Run] | None
    composer: Composer
    seeds: list[int] | None
    options: FigureOptions

    def chosen(self) -> Chosen:
        """The figure's rows with their runs."""
        table = self.figure.table
        with hydra_state.prepared():
            if self.runs is not None:
                return matched(table, self.runs, self.composer)
            return choose(table, table.rows, self.figure.seeds(self.seeds), self.composer)

    def overrides_of_trained(self) -> list[str]:
        """The overrides that a trained network accepts: where its data lie and how it is computed."""
        keys = {override: override.partition("=")[0] for override in self.composer.extra}
        return [override for override, key in keys.items() if key in NEUTRAL and key.split(".")[0] in FREE]


def draw(
    figure: Figure, runs: Sequence[Run] | None, composer: Composer, seeds: list[int] | None, options: FigureOptions
) -> Drawn:
    """Draw a figure.

    Args:
        runs: the given runs; None for the runs in the folders of the rows' configurations.
        composer: composes rows, with the overrides of the command line.
        seeds: the seeds of each row; None for the paper's number of seeds.

    Returns:
        The picture and its title.

    Raises:
        ConfigError: the runs do not fit the rows, or a network lacks what the figure shows.
        DataError: there is no run to show.
    """
    return KINDS[figure.kind](Request(figure, runs, composer, seeds, options))


def _cells(request: Request) -> Drawn:
    """Draw cells of tables, printed and ours."""
    chosen = request.chosen()
    configs = {row.label: composed for row, composed in chosen.rows if composed}
    made = report(chosen, lambda row: _counted(request.figure, row, configs.get(row.label)), {})
    picture = plane.draw(request.figure, made) if request.figure.kind == "plane" else curves.draw(request.figure, made)
    return picture, made.title


def _counted(figure: Figure, row: Row, composed: Config | None) -> dict[str, counts.CountedCell]:
    if composed is None:
        return {}
    return counts.cells(figure.table, row, factory.counting_sketch, lambda _: composed)


def _costs(request: Request) -> Drawn:
    """Draw the accuracy of any runs over their costs."""
    if request.runs is None:
        raise ConfigError(f"{request.figure.id} needs runs", "--runs", "give folders or a quoted pattern")
    comparison = compare(request.runs)
    title = f"{request.figure.title}: {comparison.common}"
    unfinished = [f"not finished: {folder}: {why}" for folder, why in comparison.unfinished[:UNFINISHED]]
    if more := len(comparison.unfinished) - UNFINISHED:
        unfinished += [f"not finished: {more} more; attnbench compare names all"] * (more > 0)
    return sweep.costs(comparison, title, [*comparison.notes, *unfinished]), title


def _lambdas(request: Request) -> Drawn:
    """Draw the learned lambdas of given runs, or of the runs of the figure's row."""
    figure, [row] = request.figure, request.figure.table.rows
    with hydra_state.prepared():
        chosen = choose(figure.table, [row], request.seeds, request.composer)
    if request.runs is None:
        runs = [results.read(run.path) for run in chosen.runs() if (run.path / "config.yaml").is_file()]
        if not runs:
            raise _no_run(chosen)
    else:
        runs = list(request.runs)
        composed = request.composer(row.overrides or [])
        chosen = replace(chosen, changed=differences([(results.values_of(composed), run) for run in runs]))
    made = lambdas.learned(runs)
    chosen = _with_images(chosen, [run.result for run in runs])
    notes = [
        lambdas.note(made),
        *provenance(runs),
        *(f"{run.folder}: {run.state}" for run in runs if not run.result),
        *figure.notes,
    ]
    return lambdas.draw(made, chosen.title, notes, bool(chosen.changed)), chosen.title


def _squeezes(request: Request) -> Drawn:
    """Draw what attention reads of single images."""
    chosen = request.chosen()
    [(row, composed)] = chosen.rows
    network = _network(request, chosen, composed)
    if network is None:
        raise _no_run(chosen)
    chosen = _with_images(chosen, [network.about["result"]])
    here, lacking = _blocks(request, network)
    with ready(network) as opened:
        numbers = request.options.images
        if numbers is None:
            numbers = hooks.spaced(request.figure.images, len(opened.data.val))
        made = hooks.squeezed(opened, here, numbers)
        notes = [_of(row.label, network, opened.data.source), f"validation images {', '.join(map(str, numbers))}"]
    notes += ["r: mean correlation over channels between the values of two images", *_lacking(network, lacking)]
    picture = channels.squeezes(made, chosen.title, [*notes, *request.figure.notes], bool(chosen.changed))
    return picture, chosen.title


def _weights(request: Request) -> Drawn:
    """Draw the weights that attention gives to channels, averaged by class."""
    chosen = request.chosen()
    layers: list[channels.Layer] = []
    notes: list[str] = []
    classes: dict[str, str] = {}
    for row, composed in chosen.rows:
        network = _network(request, chosen, composed)
        if network is None:
            layers.append(channels.Layer(row.label, None, "not run"))
            continue
        chosen = _with_images(chosen, [network.about["result"]])
        here, lacking = _blocks(request, network)
        with ready(network) as opened:
            made = hooks.mean_weights(opened, here, f"weights of {network.config.choices['attention']}")
            notes += [_of(row.label, network, opened.data.source), *_lacking(network, lacking)]
        layers.append(channels.Layer(network.config.choices["attention"], made))
        classes = classes or _classes(request, made)
    if not classes:
        raise _no_run(chosen)
    images = next(layer.weights.images for layer in layers if layer.weights)
    notes.append(f"means over the {images:,} validation images; all classes: the mean of the classes' means")
    picture = channels.weights(layers, classes, chosen.title, [*notes, *request.figure.notes], bool(chosen.changed))
    return picture, chosen.title


def _blocks(request: Request, network: Trained) -> tuple[list[hooks.Block], list[str]]:
    """The blocks to show, and the names of the figure's blocks that the network lacks."""
    here, lacking = hooks.blocks(network, request.options.blocks or request.figure.blocks)
    if lacking and request.options.blocks:
        have = ", ".join(block.name for block in hooks.blocks(network, [])[0])
        raise ConfigError(f"no attention at block {lacking[0]}", "--blocks", f"choose from {have}")
    return here, lacking


def _classes(request: Request, made: hooks.Weights) -> dict[str, str]:
    """The classes to draw, with their labels.

    They are those of the command line, else the figure's if the data have them all, else four evenly spaced ones.
    """
    wanted = request.options.classes
    if wanted:
        if unknown := [name for name in wanted if name not in made.classes]:
            some = ", ".join(made.classes[:12])
            raise ConfigError(f"unknown class {unknown[0]}", "--classes", f"choose from classes such as {some}")
        return {name: f"class {name}" for name in wanted}
    if set(request.figure.classes) <= set(made.classes) and request.figure.classes:
        return request.figure.classes
    numbers = hooks.spaced(4, len(made.classes))
    return {made.classes[number]: f"class {made.classes[number]}" for number in numbers}


def _network(request: Request, chosen: Chosen, composed: Config | None) -> Trained | None:
    """The trained network of a row, from the first seed that has a run; None without one."""
    folders = [seeded(composed, seed).run_folder for seed in chosen.seeds] if composed else []
    found = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    return load_run(found, request.options.which).with_overrides(request.overrides_of_trained()) if found else None


def _with_images(chosen: Chosen, found: Iterable[Mapping[str, Any] | None]) -> Chosen:
    """Add changes to the images of runs to the changed protocol, as reports do."""
    data = [what for result in found if (what := changed_images(source_of(result or {})))]
    new = [f"data {what}" for what in dict.fromkeys(data) if f"data {what}" not in chosen.changed]
    return replace(chosen, changed=", ".join(filter(None, [chosen.changed, *new])))


def _no_run(chosen: Chosen) -> DataError:
    """The error that there is no run to show, with the folder of the first one."""
    first = next((run.path for run in chosen.runs()), Path())
    return DataError(f"{chosen.table.id} has no run to show", first, "train it, or give --runs")


def _of(label: str, network: Trained, source: str) -> str:
    """A line that describes a trained network and its data."""
    c, about = network.config.choices, network.about["checkpoint"]
    result = network.about["result"] or {}
    top1 = f", top-1 {result['top1']:.2f} %" if "top1" in result and about["which"] == "last" else ""
    which = f"{about['which']} weights, after epoch {about['epoch']} of {network.config.tree['schedule']['epochs']}"
    return f"{label} is here {c['attention']} in {c['backbone']}, seed {network.config.seed}, {which}{top1}; {source}"


def _lacking(network: Trained, names: Sequence[str]) -> list[str]:
    return [f"{network.config.choices['backbone']} has no attention at {', '.join(names)}"] if names else []


KINDS: dict[str, Callable[[Request], Drawn]] = {
    "plane": _cells,
    "curves": _cells,
    "costs": _costs,
    "lambdas": _lambdas,
    "squeezes": _squeezes,
    "weights": _weights,
}
