"""Measurements of task=throughput: times, their check against the oracle, and costs."""
