"""``attnbench eval RUN``: evaluate a run's weights again, on its validation split or a copy of it elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

from attnbench.base import console
from attnbench.cli.parser import CommandParser
from attnbench.models.checkpoint import Which
from attnbench.runs.evaluate import evaluate


def main() -> None:
    """``attnbench eval RUN [key=value ...] [--which last|best] [--json]``."""
    parser = CommandParser(prog="attnbench eval", description="Evaluate a run's weights again on its validation split.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as dataset.root=DIR or runtime.device=cpu"
    )
    parser.add_argument(
        "--which", choices=get_args(Which), default="last", help="weights of this epoch (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse()
    found = evaluate(options.run, options.which, options.overrides)
    if options.json:
        print(json.dumps({key: None if value != value else value for key, value in found.items()}, indent=2))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, title=f"{found['which']} weights, after epoch {found['epoch']}")
    for name, value in found.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.3f}" if math.isfinite(value) else str(value))
    table.add_row("images", f"{found['images']:,}")
    table.add_row("data", found["data"]["source"])
    notes = []
    if found["same_data"] is False:
        notes.append("these are not the data that the run was trained and evaluated on")
    if found["changed"]:
        notes.append(f"CHANGED PROTOCOL: {', '.join(found['changed'])}; the run evaluates differently")
    console.show(table, *notes)
