"""The time from starting a process to the first trained step: ``python train.py`` on the digits, and timm.

Ours is an ordinary run, up to the moment when the checkpoint of its first step is in its folder. The reference imports
what timm's train.py imports, builds timm's smallest ResNet and an optimizer, and takes one step on noise of the digits'
shape; it reads and writes no files.

    python scripts/benchmarks/cold_start.py [--repetitions 7] [--json]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import Claim, arguments, report

from attnbench.base.benchmark import compare, wall_seconds

ROOT = Path(__file__).parents[2]
FIRST_STEP = ("runtime.checkpoint_steps=1", "batch_size=64")
TIMM = """
import torch, torch.nn as nn, torchvision.utils, yaml
from torch.nn.parallel import DistributedDataParallel
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config, Mixup, FastCollateMixup, AugMixDataset
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.loss import JsdCrossEntropy, SoftTargetCrossEntropy, BinaryCrossEntropy, LabelSmoothingCrossEntropy
from timm.models import create_model, safe_model_name, resume_checkpoint, load_checkpoint, model_parameters
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ApexScaler, NativeScaler
model = create_model("resnet10t", num_classes=10)
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9)
nn.functional.cross_entropy(model(torch.randn(64, 3, 16, 16)), torch.randint(10, (64,))).backward()
optimizer.step()
"""


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(repetitions=7)
    options = parser.parse_args()
    claim = Claim(
        title="Cold start to a trained step",
        ours="attnbench",
        reference="timm",
        at_least=1.0,
        unit="starts a second",
        work=1.0,
        setting="one thread, 64 images of 16x16",
    )
    report(
        claim,
        compare({"attnbench": ours, "timm": timm}, repetitions=options.repetitions, clock=wall_seconds),
        options.json,
    )


def ours() -> None:
    """Start ``train.py`` and wait for the checkpoint after its first step."""
    with tempfile.TemporaryDirectory() as outputs:
        process = _start([sys.executable, "train.py", *FIRST_STEP, f"paths.outputs={outputs}"])
        while not any(Path(outputs).rglob("last.pt")):
            if process.poll() is not None:
                sys.exit(f"error: train.py ended with exit code {process.returncode} before its first step")
            time.sleep(0.01)
        process.kill()
        process.wait()


def timm() -> None:
    """Run the script that takes one step with timm."""
    if code := _start([sys.executable, "-c", TIMM]).wait():
        sys.exit(f"error: the reference ended with exit code {code}")


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere)


if __name__ == "__main__":
    main()
