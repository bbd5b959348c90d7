"""The cost of SE and ECA in ResNet-50: training, inference and memory, relative to the plain network in the same mode.

    python scripts/benchmarks/attention_cost.py [--compile] [--repetitions 15] [--batch 16] [--json]

The networks run on batches of noise of 224x224 pixels in bf16 and channels_last, and take turns in one process, as in
``attnbench speed``. Compiling takes minutes.
"""

from __future__ import annotations

import sys

import torch
from claims import Finding, arguments, findings

from attnbench.cli import speed

BARS = {  # minimum ratios of speed and maximum ratio of memory, by whether the networks are compiled
    False: {"train_ratio": 0.88, "infer_ratio": 0.92, "memory_ratio": 1.05},
    True: {"train_ratio": 0.95, "infer_ratio": 0.97, "memory_ratio": 1.05},
}
KINDS = {"train_ratio": "training", "infer_ratio": "inference", "memory_ratio": "peak memory of training"}


def main() -> None:
    """Measure and print; exit with code 1 if a ratio misses its bar."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="compile all networks")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    overrides = ["attention=none,se,eca", "backbone=resnet50", "dataset=imagenet", f"batch_size={options.batch}"]
    overrides += ["runtime.precision=bf16", f"runtime.compile={str(options.compile).lower()}"]
    labels, configs = speed.members(overrides)
    lines = speed.measure(labels, configs, overrides, options.repetitions, batch_named=True)
    found = [verdict(line, kind, options.compile) for line in lines[1:] for kind in KINDS]
    if options.json:
        print(findings(found, options.repetitions, lines=[line.as_dict() for line in lines]))
    else:
        speed.report(lines, configs[0])
        for one in found:
            print(f"{one.claim}: {one.reached}, {one.bar}: {'met' if one.met else 'NOT MET'}")
    sys.exit(0 if all(one.met for one in found) else 1)


def verdict(line: speed.Measured, kind: str, compiled: bool) -> Finding:
    """An attention's ratio to the plain network, and whether it meets its bar."""
    bar, ratio = BARS[compiled][kind], getattr(line, kind)
    how = f"bf16, batch {line.batch_size}, {'compiled' if compiled else 'eager'}"
    claim = f"{line.label} / plain ResNet-50, {KINDS[kind]} ({how})"
    if kind == "memory_ratio":
        return Finding(claim, f"<= {bar}", f"{ratio:.3f}", ratio <= bar)
    return Finding(claim, f">= {bar}", str(ratio), ratio.median >= bar)


if __name__ == "__main__":
    main()
