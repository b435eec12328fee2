"""Weights & Biases as a mirror of the store: `content` reads a cell, `upload` is the one process
that imports wandb, `mirror` starts it, bounds its time and remembers what was sent."""
