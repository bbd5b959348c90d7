"""Tasks: the loss and the evaluation of a network."""
