"""From rows to cells: every row checked before the first starts, rows that are the same work told
once.

Hydra composes once for each combination of what it must resolve itself: groups, and the options of
model, task and tracking. The other options have types, and are set on the composed configuration; a
test compares the two ways.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment.config import GROUPS, RunConfig, attn_config, register_schema
from harness.experiment.mistakes import explain
from harness.experiment.overrides import normalize_override, override_word, parse_override
from harness.experiment.plan import Plan, Planner, to_run_config
from harness.results.index import Key
from harness.sweep.grid import Grid
from harness.sweep.rows import Rows

TYPED = {f.name for f in fields(RunConfig)} - GROUPS


class Mistakes(UserError):
    """All mistakes of a sweep: sentence -> the numbers of the rows that make it."""

    def __init__(self, rows: Mapping[str, Sequence[int]]):
        self.rows = rows
        super().__init__("\n".join(f"{_numbers(numbers)}: {sentence}" for sentence, numbers in rows.items()))


class Composer:
    """Typed configurations of rows, in a `with` block."""

    def __enter__(self) -> "Composer":
        register_schema()
        self._open()
        self._schema = OmegaConf.structured(RunConfig)
        self._typed = TYPED | {f"attn.{f.name}" for f in fields(attn_config())}
        self._composed: dict[tuple[str, ...], RunConfig | UserError] = {}
        self._set: dict[str, Any] = {}
        return self

    def __exit__(self, *error) -> None:
        self._hydra.__exit__(*error)

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """What Hydra composes from these overrides, `task`, `model` and `tracking` shared with
        other rows.

        Raises UserError with a line for each mistake.
        """
        simple = [o for o in overrides if self._simple(o)]
        said: list[str] = []
        values: dict[str, Any] = {}
        base = None
        try:
            base = self._base(tuple(o for o in overrides if not self._simple(o)))
        except UserError as error:
            said.append(str(error))
        for override in simple:
            try:
                values[override.partition("=")[0]] = self._value(override)
            except UserError as error:
                said.append(str(error))
        if said or base is None:
            raise UserError("\n".join(said))
        config = copy.copy(base)
        config.attn = copy.copy(base.attn)
        for name, value in values.items():
            group, _, field = name.rpartition(".")
            setattr(config.attn if group else config, field, value)
        return config

    def _base(self, overrides: tuple[str, ...]) -> RunConfig:
        if overrides not in self._composed:
            try:
                config = compose("config", overrides=list(map(normalize_override, overrides)))
                self._composed[overrides] = to_run_config(config)
            except UserError as error:
                self._composed[overrides] = error
            except (HydraException, OmegaConfBaseException) as error:
                self._composed[overrides] = UserError(explain(error, list(overrides)))
                self._open()  # explaining ended it: that composes a configuration of its own
        found = self._composed[overrides]
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found

    def _open(self) -> None:
        """Make Hydra ready to compose."""
        GlobalHydra.instance().clear()
        self._hydra = initialize_config_dir(str(CONF), version_base="1.3")
        self._hydra.__enter__()

    def _simple(self, override: str) -> bool:
        return override.partition("=")[0] in self._typed and "${" not in override

    def _value(self, override: str) -> Any:
        """The value with the type that the option has."""
        if override not in self._set:
            try:
                read = parse_override(override)
                OmegaConf.update(self._schema, read.key_or_group, read.value(), merge=True)
                self._set[override] = OmegaConf.select(self._schema, read.key_or_group)
            except UserError as error:
                self._set[override] = error
            except OmegaConfBaseException as error:
                self._set[override] = UserError(explain(error, [override]))
                self._open()
        found = self._set[override]
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found


def expand(grid: Grid, *, results: str = "results", here: bool = True) -> Rows:
    """The cells of a grid, rows that are the same work as an earlier one left out.

    here: the rows are to run on this machine, whose devices and memory are checked too.
    Raises Mistakes with every mistake of every row.
    """
    rows = Rows(grid)
    for number, plan in plans(grid, results=results, here=here):
        rows.add(number, work_of(plan), samples_of(plan))
    return rows.once()


def plans(grid: Grid, *, results: str, here: bool) -> Iterator[tuple[int, Plan]]:
    """The number of each row and what harness.run would do for it. Rows with a mistake are left
    out, and the end raises Mistakes with every mistake of every row."""
    mistakes: dict[str, list[int]] = {}
    planner = Planner(on_this_machine=here)
    folder = override_word("results", results)
    with Composer() as composer:
        for number in range(1, len(grid) + 1):
            try:
                plan = planner.plan(composer.config((*grid.overrides(number), folder)))
            except UserError as error:
                for sentence in str(error).splitlines():
                    mistakes.setdefault(sentence, []).append(number)
            else:
                yield number, plan
    if mistakes:
        raise Mistakes(mistakes)


def work_of(plan: Plan) -> list[Key]:
    """The tasks that a run of this plan brings to an end, by their places in the store."""
    return [
        (cell.cell_id, f"{task.task.name}-{cell.task_id(task.task.name, task.identity(cell))}")
        for cell in plan.cells
        for task in plan.tasks
    ]


def samples_of(plan: Plan) -> list[int]:
    """How many rows complete each of them."""
    return [
        task.task.amount(task.options, cell, plan.samples, plan.batch)[0] for cell in plan.cells for task in plan.tasks
    ]


def _numbers(numbers: Sequence[int]) -> str:
    """Row numbers in a few words: row 3; rows 3-17 and 20 (16 rows)."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    told = [f"{a}-{b}" if b > a else str(a) for a, b in spans[:5]]
    if len(numbers) == 1:
        return f"row {told[0]}"
    more = ", ..." if len(spans) > 5 else ""
    return f"rows {', '.join(told)}{more} ({len(numbers)} rows)"
