"""``attnbench show``: print the sites of attention as a tree."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from attnbench.base import console, escape
from attnbench.cli.parser import override_parser
from attnbench.config.configuration import Config
from attnbench.models.complexity import Complexity, SiteCount
from attnbench.models.inspection import Setting, inspect, own_attention, title

if TYPE_CHECKING:
    from rich.tree import Tree


def main() -> None:
    """``attnbench show key=value ...``."""
    parser = override_parser("show", "Print the sites of attention as a tree.")
    options = parser.parse()
    composed, size, _, setting = inspect(options.overrides)
    from rich.console import Console

    Console().print(_tree(composed, size, setting))
    if remark := own_attention(composed):
        console.say(remark)


def _tree(composed: Config, size: Complexity, setting: Setting) -> Tree:
    from rich.tree import Tree

    added = f"{len(size.sites)} sites, {size.attention_params:+,} params, {size.attention_macs:+,} MACs"
    root = Tree(f"[bold]{_text(title(composed, setting))}[/bold]: {added}", highlight=False)
    for stage, in_stage in groupby(size.sites, key=lambda site: site.stage):
        sites = list(in_stage)
        branch = root.add(f"stage {stage}: {len(sites)} sites, {sum(s.params for s in sites):+,} params")
        for block, in_block in groupby(sites, key=lambda site: site.block):
            lines = [_line(site, block) for site in in_block]
            leaf = branch.add(
                f"[cyan]{_text(block)}[/cyan]  {lines[0]}" if len(lines) == 1 else f"[cyan]{_text(block)}[/cyan]"
            )
            for line in lines if len(lines) > 1 else ():
                leaf.add(line)
    return root


def _line(site: SiteCount, block: str) -> str:
    channels = f"{site.in_channels} -> {site.out_channels}"
    parts = [site.path.removeprefix(block + "."), site.role, channels, site.detail]
    return f"{_text('  '.join(filter(None, parts)))}  {site.params:+,} params  {site.macs:+,} MACs"


def _text(text: str) -> str:
    """Text that rich prints as it is, without markup."""
    from rich.markup import escape as without_markup

    return without_markup(escape.visible(text))
