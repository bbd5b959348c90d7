"""Pictures over a network's channels: attention's input for single images, and its weights averaged by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.reports.figures.canvas import Style, canvas, colour, key, legend, placeholder, plain
from attnbench.reports.figures.hooks import Block, Squeezed, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

COLUMNS = (4, 3)  # blocks side by side: the number that leaves fewer cells empty
GAP = 0.12  # height of the gap between blocks, relative to axes
ALL = "#000000"
WIDE, HIGH = 4.4, 2.1  # inches of axes with a line for each class


@dataclass(frozen=True)
class Layer:
    """A network in a figure of weights: its name, and its weights, or why they are missing."""

    name: str
    weights: Weights | None
    missing: str = ""


def squeezes(made: Squeezed, title: str, notes: Sequence[str], warned: bool) -> Picture:
    """Plot the squeezed values over the channels, with a row for each image and a column for each block."""
    rows, columns = len(made.labels), len(made.blocks) + 1
    options: Style = {"sharex": "col", "sharey": "col", "gridspec_kw": {"width_ratios": [0.7] + [1] * (columns - 1)}}
    size = (1.6 + 1.9 * columns, 1.25 * rows + 0.5)
    picture, grid = canvas(rows, columns, size, title, notes, warned=warned, **options)
    for i, line in enumerate(grid):
        line[0].imshow(made.images[i].permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].set_axis_off()
        line[0].set_title(f"class {made.labels[i]}", fontsize=8)
        for axes, block in zip(line[1:], made.blocks, strict=True):
            values = made.values[block.name]
            plain(axes, f"GAP {_named(block)}" + f"\nr = {similarity(values):z.2f}" * (rows > 1) if i == 0 else "")
            axes.plot(values[i].numpy(), color=colour(i), lw=_thin(values))
            _whole(axes)
    for axes in grid[-1][1:]:
        axes.set_xlabel("channel", fontsize=8)
    grid[rows // 2][1].set_ylabel("mean activation", fontsize=8)
    return picture


def _thin(values: Tensor) -> float:
    """The line width, thinner for more channels, since they lie closer together."""
    return max(0.3, min(0.9, 12 / values.shape[1] ** 0.5))


def _whole(axes: Axes) -> None:
    """Label the channels by integers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=7)


def similarity(values: Tensor) -> float:
    """The mean correlation between the values (N, C) of any two images, over channels; 1 for a single image."""
    correlations = torch.atleast_2d(torch.corrcoef(values.double()))
    pairs = [correlations[i, j].item() for i, j in combinations(range(len(values)), 2)]
    return sum(pairs) / len(pairs) if pairs else 1.0


def weights(
    layers: Sequence[Layer], classes: dict[str, str], title: str, notes: Sequence[str], warned: bool
) -> Picture:
    """Plot mean weights over the channels; for each block, the networks are drawn one below the other.

    Args:
        classes: the classes to draw: their labels in the legend by their names in the data.
    """
    names = _names(layers)
    columns = min(COLUMNS, key=lambda number: -len(names) % number) if len(names) > max(COLUMNS) else len(names)
    strips = -(-len(names) // columns)
    heights = ([1.0] * len(layers) + [GAP]) * strips
    size = (WIDE * columns + 1.6, HIGH * strips * (len(layers) + GAP))
    gridded: Style = {"gridspec_kw": {"height_ratios": heights}}
    picture, grid = canvas(len(heights), columns, size, title, notes, warned=warned, **gridded)
    for at in range(strips * columns):
        strip, column = divmod(at, columns)
        lines = grid[strip * (len(layers) + 1) : (strip + 1) * (len(layers) + 1)]
        _block([line[column] for line in lines], layers, names[at] if at < len(names) else "", classes)
    keys = [key(called, color=colour(i), lw=1.2) for i, called in enumerate(classes.values())]
    legend(picture, [*keys, key("all classes", color=ALL, lw=1.2)])
    return picture


def _names(layers: Sequence[Layer]) -> list[str]:
    """The names of the blocks of all networks, in order."""
    found = [block.name for layer in layers if layer.weights for block in layer.weights.blocks]
    return list(dict.fromkeys(found))


def _block(column: Sequence[Axes], layers: Sequence[Layer], name: str, classes: dict[str, str]) -> None:
    """Draw a block of each network, all on one scale; the last axes are the gap to the next block."""
    *shown, gap = column
    gap.set_axis_off()
    for axes, layer in zip(shown, layers, strict=True):
        if name:
            _weights(axes, layer, name, classes)
            if axes is not shown[0]:
                axes.sharey(shown[0])
        else:
            axes.set_axis_off()
    if name:
        shown[0].autoscale()
        shown[-1].set_xlabel("channel", fontsize=8)


def _weights(axes: Axes, layer: Layer, name: str, classes: dict[str, str]) -> None:
    made = layer.weights
    block = next((block for block in made.blocks if block.name == name), None) if made else None
    if made is None or block is None:
        plain(axes, f"{layer.name}: {name}")
        placeholder(axes, layer.missing or f"no block {name}")
        return
    plain(axes, f"{layer.name}: conv {_named(block)}")
    axes.set_ylabel("weight", fontsize=8)
    _whole(axes)
    means = made.means[name]
    for i, wanted in enumerate(classes):
        if wanted in made.classes:
            line = means[made.classes.index(wanted)]
            behind = 3 - min(0.9, line.std(correction=0).item())  # the one that varies most
            axes.plot(line.numpy(), color=colour(i), lw=_thin(means), zorder=behind)
    axes.plot(means.mean(0).numpy(), color=ALL, lw=_thin(means), zorder=4)


def _named(block: Block) -> str:
    return f"{block.name} ({block.path})"
