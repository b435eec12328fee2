"""Facts about NVIDIA's multiprocessors that the driver does not report."""

CAPABILITY = 9  # major compute capability of the recorded machine code (docs/results/aot.json): Hopper
SCHEDULERS = 4  # per multiprocessor: each issues one warp instruction per cycle
