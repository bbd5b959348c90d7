"""What every attention costs at its usual placement: speed and memory relative to the plain network, eager, one thread.

    python scripts/benchmarks/every_attention.py [NETWORK] [--repetitions 5] [--json]

The networks are those of ``attention_cost.py``. The attentions are measured a few at a time, each time with the plain
network.
"""

from __future__ import annotations

import sys

import torch
from attention_cost import NETWORKS
from claims import arguments, findings

import attnbench
from attnbench.base.errors import ConfigError
from attnbench.cli import speed
from attnbench.config import composition
from attnbench.config.configuration import Config

TOGETHER = 5


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", choices=sorted(NETWORKS), default="resnet50")
    parser.add_argument("--attentions", nargs="*", help="only these")
    parser.set_defaults(repetitions=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = NETWORKS[options.network]
    rows = []
    names = options.attentions or [name for name in attnbench.list_attentions() if name != "none"]
    for some in (names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER)):
        rows += measured(some, list(network.overrides), options.repetitions)
    if options.json:
        print(findings([], options.repetitions, title=f"{network.title}, eager, 1 thread", rows=rows))
        return
    for row in rows:
        print(f"{row['attention']:14} {row['placement']:30} {row['train']:>24} {row['infer']:>24} {row['memory']}")


def measured(names: list[str], overrides: list[str], repetitions: int) -> list[dict[str, str]]:
    """A row for each attention; one that the network cannot have is left out, with a line that says why."""
    known = [name for name in names if _works(name, overrides)]
    if not known:
        return []
    words = [*overrides, f"attention=none,{','.join(known)}"]
    labels, configs = speed.members(words)
    lines = speed.measure(labels, configs, words, repetitions, batch_named=True)
    return [
        {
            "attention": name,
            "placement": _placement(config),
            "train": str(line.train_ratio),
            "infer": str(line.infer_ratio),
            "memory": "" if line.map_memory_ratio is None else f"{line.map_memory_ratio:.2f}",
        }
        for name, config, line in zip(known, configs[1:], lines[1:], strict=True)
    ]


def _works(name: str, overrides: list[str]) -> bool:
    from attnbench.models import factory

    try:
        factory.sketch(composition.compose([*overrides, f"attention={name}"]), 10)
    except ConfigError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return False
    return True


def _placement(config: Config) -> str:
    """Where the attention is by default."""
    placement = config.tree["placement"]
    wrap = placement.get("wrap", "conv")
    return ", ".join(placement["roles"]) + (f" ({wrap})" if "block" not in placement["roles"] else "")


if __name__ == "__main__":
    main()
