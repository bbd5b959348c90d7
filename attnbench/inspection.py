"""What a network is before it is trained: ``attnbench count`` and ``show``, on the meta device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from attnbench import build, complexity, config, printing
from attnbench.complexity import Complexity, SiteCount, Size
from attnbench.config import Config
from attnbench.words import overriding

if TYPE_CHECKING:
    from rich.tree import Tree

Setting = tuple[int, Size]  # classes, and the side of an image or its height and width


def inspect(overrides: Sequence[str]) -> tuple[Config, Complexity, dict[str, int], Setting]:
    """The size of the network that a command line makes.

    Returns:
        The configuration, the size, each counter's operations, and the number of classes and the image's side.
    """
    composed = config.compose(overrides)
    classes, size = build.setting(composed, overrides)
    model, sites = build.sketch(composed, classes)
    plain, _ = build.sketch(composed.without_attention(), classes)
    operations = {name: counter(model, size) for name, counter in complexity.COUNTERS.items()}
    return composed, complexity.measure(model, plain, sites, size), operations, (classes, size)


def count() -> None:
    """``attnbench count [-v] [--json] key=value ...``."""
    words = overriding("count", "Parameters and operations of a network, without its weights.")
    words.add_argument("-v", "--verbose", action="store_true", help="each site")
    words.add_argument("--json", action="store_true", help="as data")
    words.add_argument("--counter", choices=complexity.COUNTERS, help="only the operations by one way of counting")
    taken = words.taken()
    composed, size, operations, setting = inspect(taken.overrides)
    if taken.json:
        about = {"counters": operations, "num_classes": setting[0], "image_size": setting[1]}
        print(json.dumps(size.as_dict() | about))
    elif taken.counter:
        print(operations[taken.counter])
    else:
        _print_counts(composed, size, operations, setting)
        if taken.verbose:
            _print_sites(size.sites)


def show() -> None:
    """``attnbench show key=value ...``: the tree of sites."""
    words = overriding("show", "Where attention goes: the tree of sites.")
    taken = words.taken()
    composed, size, _, setting = inspect(taken.overrides)
    from rich.console import Console

    Console().print(_tree(composed, size, setting))


def title(composed: Config, setting: Setting) -> str:
    """What was counted: ``eca at block on resnet50, 1000 classes, 224x224``."""
    c = composed.choices
    where = f"{c['attention']} at {c['placement']} on " if c["attention"] != "none" else ""
    height, width = (setting[1], setting[1]) if isinstance(setting[1], int) else setting[1]
    detector = f"{c['detector']} with " if "detector" in c else ""
    return f"{detector}{where}{c['backbone']}, {setting[0]} classes, {height}x{width}"


def _print_counts(composed: Config, size: Complexity, counted: dict[str, int], setting: Setting) -> None:
    from rich.table import Table

    table = Table("", "exact", "decimal", "binary", title=title(composed, setting))
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("parameters", *_units(size.params))
    table.add_row("  of attention", *_units(size.attention_params))
    table.add_row("multiply-adds", *_units(size.macs))
    table.add_row("  of attention", *_units(size.attention_macs))
    table.add_row("activations", *_units(size.activations), end_section=True)
    for name, operations in counted.items():
        if name != "macs":
            table.add_row(f"operations, {name}", *_units(operations))
    printing.show(table)


def _units(number: int) -> tuple[str, str, str]:
    """A number as it is, in 10^6 or 10^9, and in 2^20 or 2^30."""
    decimal = f"{number / 1e9:.3f} G" if abs(number) >= 10**9 else f"{number / 1e6:.3f} M"
    binary = f"{number / 2**30:.2f} x 2^30" if abs(number) >= 2**30 else f"{number / 2**20:.2f} x 2^20"
    return f"{number:,}", decimal, binary


def _print_sites(sites: list[SiteCount]) -> None:
    from rich.table import Table

    table = Table("site", "role", "stage", "channels", "", "params", "MACs")
    for site in sites:
        channels = f"{site.in_channels} -> {site.out_channels}"
        table.add_row(
            site.path, site.role, str(site.stage), channels, site.detail, f"{site.params:+,}", f"{site.macs:+,}"
        )
    printing.show(table)


def _tree(composed: Config, size: Complexity, setting: Setting) -> Tree:
    from rich.tree import Tree

    added = f"{len(size.sites)} sites, {size.attention_params:+,} params, {size.attention_macs:+,} MACs"
    root = Tree(f"[bold]{title(composed, setting)}[/bold]: {added}", highlight=False)
    for stage, in_stage in groupby(size.sites, key=lambda site: site.stage):
        sites = list(in_stage)
        branch = root.add(f"stage {stage}: {len(sites)} sites, {sum(s.params for s in sites):+,} params")
        for block, in_block in groupby(sites, key=lambda site: site.block):
            lines = [_line(site, block) for site in in_block]
            leaf = branch.add(f"[cyan]{block}[/cyan]  {lines[0]}" if len(lines) == 1 else f"[cyan]{block}[/cyan]")
            for line in lines if len(lines) > 1 else ():
                leaf.add(line)
    return root


def _line(site: SiteCount, block: str) -> str:
    channels = f"{site.in_channels} -> {site.out_channels}"
    words = [site.path.removeprefix(block + "."), site.role, channels, site.detail]
    return f"{'  '.join(filter(None, words))}  {site.params:+,} params  {site.macs:+,} MACs"
