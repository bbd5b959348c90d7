"""Peak memory of a training step of MobileNetV2 on 32x32 images, batch 128, eager: bf16 relative to float32.

Usage: python scripts/benchmarks/cifar_memory.py [--json]
"""

from __future__ import annotations

import torch
from claims import Finding, arguments, findings

from attnbench.cli import speed
from attnbench.training.runtime import Process, Runtime

BAR = 0.7
NETWORK = ["backbone=mobilenetv2_cifar", "dataset=cifar10", "batch_size=128", "runtime.precision=fp32,bf16"]


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    labels, configs = speed.members(NETWORK)
    runtimes: list[Runtime] = [one.build("runtime") for one in configs]
    with runtimes[0].start() as first:
        made = [
            speed.timed_network(label, one, Process(runtime, first.device, None), NETWORK, True)
            for label, one, runtime in zip(labels, configs, runtimes, strict=True)
        ]
        fp32, bf16 = speed.peak_memory(made, first)
    reached = f"{bf16 / fp32:.2f} ({bf16 / 2**20:.0f} / {fp32 / 2**20:.0f} MiB)"
    claim = "Peak memory of training MobileNetV2 on 32x32 images (batch 128, eager): bf16 / float32"
    found = Finding(claim, f"<= {BAR}", reached, bf16 <= BAR * fp32)
    print(findings([found], speed.MEMORY_TURNS) if options.json else f"{found.claim}: {found.reached}, bar {found.bar}")


if __name__ == "__main__":
    main()
