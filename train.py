"""Train one run, or sweep with -m: ``python train.py attention=eca backbone=resnet50``."""

from attnbench.cli import guarded, train

if __name__ == "__main__":
    guarded(train)
