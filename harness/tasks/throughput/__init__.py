"""What task=throughput measures: times, their check against the oracle, and what a step costs."""
