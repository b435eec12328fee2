"""The fused kernels: launches, tables, tiles and weights, and a forward, decoding and backward
pass."""
