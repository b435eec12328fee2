"""Quality against cost, and who wins: `python -m harness.pareto`."""
