"""Imports of the server that forks processes for documents: RULER's word lists take seconds."""

from harness.tasks.lmeval import silence

with silence():
    import lm_eval.tasks.ruler.prepare_niah  # noqa: F401
