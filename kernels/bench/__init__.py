"""Speed of every way to compute the attention beside its error: `python -m kernels.bench --device
cuda|cpu`.

Needs torch and, on a GPU, triton. q, k and v are standard normal (a mean-free v is the hard case
for an approximation: errors on a real model are smaller). Beside its time each method shows its
error against exact ALiBi, and it shows a time only if it computes what it claims to: its own
weights, checked against the oracle in the same call.
"""
