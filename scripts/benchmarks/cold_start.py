"""From an empty process to a trained step: ``python train.py`` on the digits, against timm's training script.

Ours is a whole run of one step, with its folder, checkpoint, evaluation and result. The reference imports what timm's
train.py imports, builds timm's smallest ResNet and an optimizer and takes one step on noise, and writes nothing.

    python scripts/benchmarks/cold_start.py [--repetitions 7] [--json]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from claims import Claim, arguments, report

from attnbench.interleaved import compare, wall_seconds

ROOT = Path(__file__).parents[2]
ONE_STEP = ("schedule.epochs=1", "batch_size=1438", "resume=never")
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
nn.functional.cross_entropy(model(torch.randn(128, 3, 32, 32)), torch.randint(10, (128,))).backward()
optimizer.step()
"""


def main() -> None:
    words = arguments(__doc__.splitlines()[0])
    words.set_defaults(repetitions=7)
    taken = words.parse_args()
    claim = Claim(
        title="Cold start to a trained step",
        ours="attnbench",
        reference="timm",
        at_least=1.0,
        unit="starts a second",
        work=1.0,
    )
    with tempfile.TemporaryDirectory() as outputs:
        ours = [sys.executable, "train.py", *ONE_STEP, f"paths.outputs={outputs}"]
        subjects = {"attnbench": lambda: _run(ours), "timm": lambda: _run([sys.executable, "-c", TIMM])}
        report(claim, compare(subjects, repetitions=taken.repetitions, clock=wall_seconds), taken.json)


def _run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    main()
