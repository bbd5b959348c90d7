"""Train one run, or sweep with -m: ``python train.py attention=eca backbone=resnet50``."""

from attnbench.cli import train
from attnbench.cli.main import guarded

if __name__ == "__main__":
    guarded(train.main)
