"""Tasks on natural text, in overlapping windows: perplexity and fidelity."""
