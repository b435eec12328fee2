"""`python -m kernels.check`: every kernel against the oracle, over one matrix of cases."""
