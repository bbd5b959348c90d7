"""What a run does while it trains: the loop, checkpoints, learning rates, tasks, metrics."""
