"""Weights & Biases as a mirror of the store.

`content` reads a cell from the store. `upload` is the only process that imports wandb. `mirror`
starts it, limits its time and records what was sent.
"""
