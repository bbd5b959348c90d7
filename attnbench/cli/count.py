"""``attnbench count``: count the parameters and operations of a network, without its weights."""

from __future__ import annotations

import json

from attnbench.base import console
from attnbench.cli.parser import override_parser
from attnbench.config.configuration import Config
from attnbench.models import complexity
from attnbench.models.complexity import Complexity, SiteCount
from attnbench.models.inspection import Setting, inspect, title


def main() -> None:
    """``attnbench count [-v] [--json] key=value ...``."""
    parser = override_parser("count", "Count a network's parameters and operations, without its weights.")
    parser.add_argument("-v", "--verbose", action="store_true", help="also list every site")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--counter", choices=complexity.COUNTERS, help="print only the operations, counted in this way")
    options = parser.parse()
    composed, size, operations, setting = inspect(options.overrides)
    if options.json:
        about = {"counters": operations, "num_classes": setting[0], "image_size": setting[1]}
        print(json.dumps(size.as_dict() | about))
    elif options.counter:
        print(operations[options.counter])
    else:
        _print_counts(composed, size, operations, setting)
        if options.verbose:
            _print_sites(size.sites)


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
    console.show(table)


def _units(number: int) -> tuple[str, str, str]:
    """A number as text: exact, in 10^6 or 10^9, and in 2^20 or 2^30."""
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
    console.show(table)
