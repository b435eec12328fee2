"""`python -m kernels.aot`: every configuration of the fused kernels, compiled without a GPU."""
