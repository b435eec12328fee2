"""Synthetic retrieval: prompts with a needle, and whether the model finds it."""
