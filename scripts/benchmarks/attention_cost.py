"""What SE and ECA cost ResNet-50: training, inference and memory, over the plain network in the same mode.

    python scripts/benchmarks/attention_cost.py [--compile] [--repetitions 15] [--batch 16] [--json]

Batches of noise at 224x224 in bf16, channels_last; members in one process take turns (``attnbench speed``). Compiling
takes minutes.
"""

from __future__ import annotations

import json
import sys

import torch
from claims import arguments

from attnbench import speed

BARS = {  # at least, at least, at most
    False: {"train_ratio": 0.88, "infer_ratio": 0.92, "memory_ratio": 1.05},
    True: {"train_ratio": 0.95, "infer_ratio": 0.97, "memory_ratio": 1.05},
}


def main() -> None:
    words = arguments(__doc__.splitlines()[0])
    words.add_argument("--compile", action="store_true", help="all members compiled")
    words.add_argument("--batch", type=int, default=16)
    taken = words.parse_args()
    torch.set_num_threads(1)
    overrides = ["attention=none,se,eca", "backbone=resnet50", "dataset=imagenet", f"batch_size={taken.batch}"]
    overrides += ["runtime.precision=bf16", f"runtime.compile={str(taken.compile).lower()}"]
    labels, configs = speed.members(overrides)
    lines = speed.measure(labels, configs, overrides, taken.repetitions, batch_named=True)
    bars = BARS[taken.compile]
    verdicts = {line.label: verdict(line.as_dict(), bars) for line in lines[1:]}
    if taken.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "bars": bars, "met": verdicts}, indent=2))
    else:
        print(speed.text(lines, configs[0]))
        for label, met in verdicts.items():
            print(label, ", ".join(f"{name} {bars[name]}: {'met' if ok else 'NOT MET'}" for name, ok in met.items()))
    sys.exit(0 if all(ok for met in verdicts.values() for ok in met.values()) else 1)


def verdict(line: dict[str, float], bars: dict[str, float]) -> dict[str, bool]:
    return {name: line[name] <= bar if name == "memory_ratio" else line[name] >= bar for name, bar in bars.items()}


if __name__ == "__main__":
    main()
