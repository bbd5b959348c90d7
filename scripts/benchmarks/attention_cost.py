"""The cost of attention: training, inference and memory, relative to the plain network in the same mode.

    python scripts/benchmarks/attention_cost.py [NETWORK] [--compile] [--threads 2] [--repetitions 15] [--json]

The networks run on batches of noise and take turns in one process, as in ``attnbench speed``: ResNet-50 in bf16 with 16
images of 224x224 pixels, or MobileNetV2 for CIFAR of width 0.35 in float32 with 128 images. Compiling takes minutes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch
from claims import Finding, arguments, findings

from attnbench.cli import speed


class Bars(NamedTuple):
    """The least ratios of speed and the largest ratio of the memory that is not weights; None is not claimed."""

    training: float | None
    inference: float | None
    memory: float | None = None


@dataclass(frozen=True)
class Network:
    """A network that is measured, and the bars of its attentions: eager, and compiled if that is claimed."""

    title: str
    overrides: tuple[str, ...]
    eager: dict[str, Bars]
    compiled: dict[str, Bars]


NETWORKS = {
    "resnet50": Network(
        "ResNet-50, bf16, batch 16",
        ("backbone=resnet50", "dataset=imagenet", "batch_size=16", "runtime.precision=bf16"),
        {"sb": Bars(0.88, 0.90, 1.10), "se": Bars(0.95, 0.94, 1.05), "eca": Bars(0.95, 0.94, 1.05)},
        {"sb": Bars(0.92, 0.94), "se": Bars(0.98, 0.97, 1.05), "eca": Bars(0.98, 0.97, 1.05)},
    ),
    "mobilenetv2_cifar": Network(
        "MobileNetV2 x0.35 on 32x32 images, float32, batch 128",
        ("backbone=mobilenetv2_cifar", "backbone.width=0.35", "dataset=cifar10", "batch_size=128"),
        {"sb": Bars(0.88, 0.80), "se_layer": Bars(0.85, 0.80), "dyconv": Bars(0.70, 0.60)},
        {},
    ),
}


def main() -> None:
    """Measure and print; exit with code 1 if a ratio misses its bar."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", choices=sorted(NETWORKS), default="resnet50")
    parser.add_argument("--compile", action="store_true", help="compile all networks")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    options = parser.parse_args()
    network = NETWORKS[options.network]
    bars = network.compiled if options.compile else network.eager
    if not bars:
        parser.error(f"nothing is claimed of {options.network} compiled")
    torch.set_num_threads(options.threads)
    overrides = [*network.overrides, f"attention=none,{','.join(bars)}"]
    overrides.append(f"runtime.compile={str(options.compile).lower()}")
    labels, configs = speed.members(overrides)
    lines = speed.measure(labels, configs, overrides, options.repetitions, batch_named=True)
    how = "compiled" if options.compile else "eager"
    setting = f"{network.title}, {how}, {options.threads} thread{'s' * (options.threads > 1)}"
    found = [one for line in lines[1:] for one in verdicts(line, bars[line.label], setting)]
    if options.json:
        print(findings(found, options.repetitions, lines=[line.as_dict() for line in lines]))
    else:
        speed.report(lines, configs[0])
        for one in found:
            print(f"{one.claim}: {one.reached}, {one.bar}: {'met' if one.met else 'NOT MET'}")
    sys.exit(0 if all(one.met for one in found) else 1)


def verdicts(line: speed.Measured, bars: Bars, setting: str) -> list[Finding]:
    """An attention's ratios to the plain network, and whether they meet their bars."""
    title = f"{line.label} / plain"
    speeds = {"training": (line.train_ratio, bars.training), "inference": (line.infer_ratio, bars.inference)}
    found = [
        Finding(f"{title}, {kind} ({setting})", f">= {bar}", str(ratio), ratio.median >= bar)
        for kind, (ratio, bar) in speeds.items()
        if bar is not None
    ]
    if bars.memory is not None and line.map_memory_ratio is not None:
        claim = f"{title}, peak memory of training without weights, gradients and momentum ({setting})"
        ratio = line.map_memory_ratio
        found.append(Finding(claim, f"<= {bars.memory}", f"{ratio:.3f}", ratio <= bars.memory))
    return found


if __name__ == "__main__":
    main()
