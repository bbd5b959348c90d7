"""Training: the loop, checkpoints, learning rates, tasks and metrics."""
