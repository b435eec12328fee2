"""Synthetic retrieval: prompts with a needle that the model must find."""
