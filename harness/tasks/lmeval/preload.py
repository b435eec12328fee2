"""What the process that builds documents imports once, before it divides: RULER's word lists take
seconds."""

from harness.tasks.lmeval import quiet

with quiet():
    import lm_eval.tasks.ruler.prepare_niah  # noqa: F401
