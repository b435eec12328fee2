"""The tasks by name. A new task is one file and one line here."""

from harness.errors import UserError, nearest
from harness.tasks.base import Task
from harness.tasks.retrieval import RETRIEVAL

TASKS: dict[str, Task] = {task.name: task for task in (RETRIEVAL,)}


def task_of(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]
