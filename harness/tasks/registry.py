"""The tasks by name. A new task is one file and one line here."""

from harness.common.errors import UserError, nearest
from harness.tasks.base import TaskFamily
from harness.tasks.horizon import HORIZON
from harness.tasks.lmeval.task import LM_EVAL, RULER
from harness.tasks.retrieval.task import RETRIEVAL
from harness.tasks.text.fidelity import FIDELITY
from harness.tasks.text.perplexity import PERPLEXITY
from harness.tasks.theory.task import THEORY
from harness.tasks.throughput.task import THROUGHPUT

TASKS: dict[str, TaskFamily] = {
    family.name: family for family in (RETRIEVAL, RULER, LM_EVAL, PERPLEXITY, FIDELITY, THEORY, HORIZON, THROUGHPUT)
}


def task_family(name: str) -> TaskFamily:
    """Return the tasks of `task=NAME`; raise UserError for an unknown name."""
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]
