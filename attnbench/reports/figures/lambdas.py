"""The learned lambdas of SB: at each site over the epochs, and over the channels after the last epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.base.errors import DataError
from attnbench.config import stored
from attnbench.models import factory
from attnbench.models.insertion import Site
from attnbench.reports.comparison import label
from attnbench.reports.figures.canvas import Style, canvas, colour, key, legend, marker, plain
from attnbench.runs import results
from attnbench.runs.results import Run
from attnbench.training.recorder import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

ENDS = ("mean", "std", "min", "max")
LAST = 2.2  # the width of the last panel, which has a mark for each site, relative to the others
PALE = 0.88  # the used part of the colour map: its palest end is not visible on white


@dataclass(frozen=True)
class Place:
    """The lambdas of one SB site.

    Attributes:
        role: the role of the convolution in its block.
        depth: the number of its block in the network, from 1.
        means: means over channels and seeds: the initial value, then one after each epoch.
        last: ``mean``, ``std``, ``min`` and ``max`` over the channels after the last epoch.
    """

    role: str
    depth: int
    means: list[float]
    last: dict[str, float]


@dataclass(frozen=True)
class Learned:
    """The lambdas of one configuration.

    Attributes:
        name: the values that distinguish it from the others.
        seeds: the seeds that were averaged.
        places: its sites, in the network's order.
    """

    name: str
    seeds: list[int]
    places: list[Place]


def learned(runs: Sequence[Run]) -> list[Learned]:
    """The lambdas of runs, averaged over the seeds of each configuration.

    Raises:
        DataError: no run recorded lambdas.
    """
    recorded = {run.folder: lines for run in runs if (lines := _recorded(run.folder))}
    having = [run for run in runs if run.folder in recorded]
    if not having:
        todo = "give runs of attention=sb that finished an epoch"
        raise DataError(f"none of {len(runs)} runs recorded a lambda", "gauges.jsonl", todo)
    keys, _ = results.differing(having)
    groups: dict[Any, list[Run]] = {}
    for run in having:
        groups.setdefault(run.identity, []).append(run)
    return [
        Learned(
            label({key: members[0].value(key) for key in keys}) if keys else "",
            [run.seed for run in members],
            _places(members[0], [recorded[run.folder] for run in members]),
        )
        for members in groups.values()
    ]


def _recorded(folder: Path) -> list[Mapping[str, Mapping[str, float]]]:
    """The statistics of the lambdas after each epoch, by the module's path."""
    return [line["lambda"] for line in read_metrics(folder / "gauges.jsonl") if "lambda" in line]


def _places(run: Run, recorded: Sequence[Sequence[Mapping[str, Mapping[str, float]]]]) -> list[Place]:
    """The sites of a configuration in the network's order, up to the last epoch that all its seeds reached."""
    epochs = min(len(lines) for lines in recorded)
    start = float(run.values["attention.lambda_init"])
    depths: dict[str, int] = {}
    places = []
    for site in _sites(run):
        path = f"{site.path}.attention"
        depth = depths.setdefault(site.block, len(depths) + 1)
        if path in recorded[0][0]:
            means = [_mean(lines[epoch][path]["mean"] for lines in recorded) for epoch in range(epochs)]
            last = {name: _mean(lines[epochs - 1][path][name] for lines in recorded) for name in ENDS}
            places.append(Place(site.role, depth, [start, *means], last))
    return places


def _sites(run: Run) -> list[Site]:
    return factory.sketch(stored.read(run.folder), num_classes=10)[1]


def _mean(values: Iterable[float]) -> float:
    taken = list(values)
    return sum(taken) / len(taken)


def note(made: Sequence[Learned]) -> str:
    """A line on the seeds that were averaged."""
    seeds = sorted({seed for one in made for seed in one.seeds})
    return f"means over seeds {', '.join(map(str, seeds))}; epoch 0 is the initial lambda"


def draw(made: Sequence[Learned], title: str, notes: Sequence[str], warned: bool) -> Picture:
    """Draw a row for each configuration: lambda over the epochs for each role, then over the depth after the last."""
    roles = list(dict.fromkeys(place.role for one in made for place in one.places))
    deepest = max(place.depth for one in made for place in one.places)
    columns = len(roles) + 1
    size = (2.9 * (columns - 1 + LAST) + 1.6, 2.9 * len(made))
    wider: Style = {"gridspec_kw": {"width_ratios": [1.0] * len(roles) + [LAST]}}
    picture, grid = canvas(len(made), columns, size, title, notes, warned=warned, **wider)
    for line, one in zip(grid, made, strict=True):
        for axes, role in zip(line, roles, strict=False):
            _over_epochs(axes, [place for place in one.places if place.role == role], deepest)
            plain(axes, " ".join(filter(None, [one.name, role])))
            if axes is not line[0]:
                axes.sharey(line[0])
        _over_depth(line[-1], one.places, roles)
        plain(line[-1], " ".join(filter(None, [one.name, "after the last epoch"])))
        line[0].set_ylabel("lambda, mean over channels", fontsize=9)
    _depth_bar(picture, grid[0][: len(roles)] if len(made) == 1 else [a for line in grid for a in line[:-1]], deepest)
    keys = [key(role, color=colour(i), marker=marker(i), ls="none") for i, role in enumerate(roles)]
    legend(picture, keys, "last panel: mean over channels,\nbar: standard deviation,\nthin: smallest to largest")
    return picture


def _shade(depth: int, deepest: int) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["viridis"](PALE * (depth - 1) / max(1, deepest - 1)))


def _over_epochs(axes: Axes, places: Sequence[Place], deepest: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for place in places:
        axes.plot(range(len(place.means)), place.means, color=_shade(place.depth, deepest), lw=1.2, marker=".", ms=3)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _over_depth(axes: Axes, places: Sequence[Place], roles: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, role in enumerate(roles):
        mine = [place for place in places if place.role == role]
        x = [place.depth + (i - (len(roles) - 1) / 2) * 0.22 for place in mine]
        axes.vlines(x, [p.last["min"] for p in mine], [p.last["max"] for p in mine], color=colour(i), lw=0.5)
        mean, std = ([p.last[name] for p in mine] for name in ("mean", "std"))
        axes.errorbar(x, mean, std, fmt=marker(i), color=colour(i), ms=3, elinewidth=1.2)
    axes.set_xlabel("block, from the input", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _depth_bar(picture: Picture, axes: Sequence[Axes], deepest: int) -> None:
    """Add the colour bar that shows the depth of each line."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shades = ListedColormap([_shade(depth, deepest) for depth in range(1, deepest + 1)])
    scale = ScalarMappable(Normalize(0.5, deepest + 0.5), shades)
    bar = picture.colorbar(scale, ax=list(axes), orientation="horizontal", fraction=0.06, pad=0.02, aspect=60)
    bar.set_label("block, from the input", fontsize=8)
    bar.ax.tick_params(labelsize=7)
