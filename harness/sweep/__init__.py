"""Sweeps: a file in W&B's format becomes cells, which are checked together and run if missing."""
