"""Facts about NVIDIA's multiprocessors that no driver tells."""

CAPABILITY = 9  # major, of the GPUs whose machine code docs/results/aot.json records: Hopper
SCHEDULERS = 4  # of a multiprocessor: each issues one instruction of a warp a cycle
