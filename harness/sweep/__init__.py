"""Sweeps: one file in W&B's format, expanded to cells, checked as a whole, and run until nothing is
missing."""
