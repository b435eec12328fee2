"""From rows to cells: all rows are checked before the first starts, and duplicates are dropped.

Hydra composes once for each combination of groups and options of model, task and tracking. All
other options are typed and set on the composed configuration; a test compares both ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment.config import GROUPS, RunConfig, attn_config, register_schema
from harness.experiment.mistakes import explain
from harness.experiment.overrides import normalize_override, override_word, parse_override
from harness.experiment.plan import Plan, Planner, to_run_config
from harness.results.index import Key
from harness.sweep.grid import Grid
from harness.sweep.rows import Rows

Config = TypeVar("Config")
TYPED = {f.name for f in fields(RunConfig)} - GROUPS


class Mistakes(UserError):
    """All mistakes of a sweep, as sentences with the numbers of their rows."""

    def __init__(self, rows: Mapping[str, Sequence[int]]):
        self.rows = rows
        self.fields = {"mistakes": [{"message": text, "rows": list(numbers)} for text, numbers in rows.items()]}
        super().__init__("\n".join(f"{_numbers(numbers)}: {sentence}" for sentence, numbers in rows.items()))


class Setting(NamedTuple):
    """The value of an option of a row. of_attention: whether it is attn.FIELD."""

    of_attention: bool
    field: str
    value: Any


class Composer:
    """Composes the typed configurations of rows, in a `with` block."""

    def __enter__(self) -> "Composer":
        register_schema()
        self._open()
        self._schema = OmegaConf.structured(RunConfig)
        self._typed = TYPED | {f"attn.{f.name}" for f in fields(attn_config())}
        self._composed: dict[tuple[str, ...], RunConfig | UserError] = {}
        self._settings: dict[str, Setting | UserError | None] = {}
        return self

    def __exit__(self, *error) -> None:
        self._hydra.__exit__(*error)

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """Return the configuration of these overrides.

        Its `task`, `model` and `tracking` are shared with other rows.

        Raises:
            UserError: with a line for each mistake.
        """
        found = [(override, self._setting(override)) for override in overrides]
        messages: list[str] = []
        base = None
        try:
            base = self._base(tuple(override for override, setting in found if setting is None))
        except UserError as error:
            messages.append(str(error))
        messages += [str(setting) for _, setting in found if isinstance(setting, UserError)]
        if messages or base is None:
            raise UserError("\n".join(messages))
        config = _copy(base)
        config.attn = _copy(base.attn)
        for _, setting in found:
            if isinstance(setting, Setting):
                setattr(config.attn if setting.of_attention else config, setting.field, setting.value)
        return config

    def _base(self, overrides: tuple[str, ...]) -> RunConfig:
        if overrides not in self._composed:
            try:
                config = compose("config", overrides=list(map(normalize_override, overrides)))
                self._composed[overrides] = to_run_config(config)
            except UserError as error:
                self._composed[overrides] = error
            except Exception as error:  # of Hydra and its libraries, which the words have caused
                self._composed[overrides] = UserError(explain(error, list(overrides)))
                self._open()  # `explain` composes a configuration, which ends this one
        composed = self._composed[overrides]
        if isinstance(composed, UserError):
            raise UserError(str(composed))
        return composed

    def _open(self) -> None:
        """Initialise Hydra."""
        GlobalHydra.instance().clear()
        self._hydra = initialize_config_dir(str(CONF), version_base="1.3")
        self._hydra.__enter__()

    def _setting(self, override: str) -> Setting | UserError | None:
        """Return what an override sets, its value converted to the type of its option; None for an
        override that Hydra must compose."""
        if override not in self._settings:
            self._settings[override] = self._read(override)
        return self._settings[override]

    def _read(self, override: str) -> Setting | UserError | None:
        name = override.partition("=")[0]
        if name not in self._typed or "${" in override:
            return None
        try:
            parsed = parse_override(override)
            OmegaConf.update(self._schema, parsed.key_or_group, parsed.value(), merge=True)
            value = OmegaConf.select(self._schema, parsed.key_or_group)
        except UserError as error:
            return error
        except Exception as error:  # as above
            mistake = UserError(explain(error, [override]))
            self._open()
            return mistake
        group, _, field = name.rpartition(".")
        return Setting(bool(group), field, value)


def _copy(config: Config) -> Config:
    """Return what `copy.copy` does, in a tenth of its time."""
    made = object.__new__(type(config))
    vars(made).update(vars(config))
    return made


def expand(grid: Grid, *, results: str = "results", on_this_machine: bool = True) -> Rows:
    """Return the rows of a grid, without rows whose work repeats an earlier row.

    Args:
        grid: the grid.
        results: the results folder.
        on_this_machine: whether to check the devices and memory of this machine too.

    Raises:
        Mistakes: with all mistakes of all rows.
    """
    rows = Rows(grid)
    for number, overrides, plan in plans(grid, results=results, on_this_machine=on_this_machine):
        rows.add(number, overrides, work_of(plan), samples_of(plan))
    return rows.without_duplicates()


def plans(grid: Grid, *, results: str, on_this_machine: bool) -> Iterator[tuple[int, tuple[str, ...], Plan]]:
    """Yield the number, the overrides and the plan of each row without mistakes.

    Args:
        grid: the grid.
        results: the results folder.
        on_this_machine: whether to check the devices and memory of this machine too.

    Raises:
        Mistakes: after the last row, with all mistakes of all rows.
    """
    mistakes: dict[str, list[int]] = {}
    planner = Planner(on_this_machine=on_this_machine)
    folder = override_word("results", results)
    with Composer() as composer:
        for number in range(1, len(grid) + 1):
            overrides = grid.overrides(number)
            try:
                plan = planner.plan(composer.config((*overrides, folder)))
            except UserError as error:
                for sentence in str(error).splitlines():
                    mistakes.setdefault(sentence, []).append(number)
            else:
                yield number, overrides, plan
    if mistakes:
        raise Mistakes(mistakes)


def work_of(plan: Plan) -> list[Key]:
    """Return the store's keys of all tasks of a plan."""
    return [
        (cell.cell_id, f"{task.task.name}-{cell.task_id(task.task.name, task.identity(cell))}")
        for cell in plan.cells
        for task in plan.tasks
    ]


def samples_of(plan: Plan) -> list[int]:
    """Return the number of samples that completes each task of `work_of`."""
    return [
        task.task.amount(task.options, cell, plan.samples, plan.batch)[0] for cell in plan.cells for task in plan.tasks
    ]


def _numbers(numbers: Sequence[int]) -> str:
    """Return row numbers in words: "row 3", or "rows 3-17, 20 (16 rows)"."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    ranges = [f"{a}-{b}" if b > a else str(a) for a, b in spans[:5]]
    if len(numbers) == 1:
        return f"row {ranges[0]}"
    rest = ", ..." if len(spans) > 5 else ""
    return f"rows {', '.join(ranges)}{rest} ({len(numbers)} rows)"
