"""Tests of the Triton kernels in Triton's interpreter: `make test-interpreter`, a process of its
own, because Triton decides when it is imported whether it interprets."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
