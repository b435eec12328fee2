"""What replacing ALiBi attention costs and gives. `attention` replaces it in a loaded model, `run`
computes one cell, `load` reads the records; each imports what it needs when it is first asked
for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.api import load, run
    from harness.experiment.replace import attention

__all__ = ["attention", "load", "run"]

# `run` is the module of the command as well, which can be called
_HOMES = {"attention": "harness.experiment.replace", "load": "harness.api"}


def __getattr__(name: str) -> object:
    if name == "run":
        return import_module("harness.run")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
