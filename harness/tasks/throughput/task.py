"""Throughput: time of prefill and decoding, memory and operations, with the error of the kernel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.attentions.registry import EXACT
from harness.cell import Cell
from harness.common.errors import UserError
from harness.common.stats import Metric
from harness.results.schema import CountsRow, RepeatRow
from harness.tasks.base import PlannedTask, TaskContext
from harness.tasks.throughput.figures import figures

DRAW = 0  # the timed draw of the masks
MIN_CONTEXT = 32  # tokens, because the check needs rows at each quarter


@dataclass
class Options:
    """Options of task=throughput.

    repeats: repeats of each measurement; a larger number extends an earlier run.
    decode_tokens: tokens decoded after the prompt in each repeat.
    rows: further numbers of tokens per decoding step, as in speculative decoding.
    chunk: tokens of a piece of the chunked prefill.
    batch: sequences.
    beside_exact: whether to time exact ALiBi alternately with the cell's attention, for a ratio
        that is robust to the machine's load.
    """

    repeats: int = 10
    decode_tokens: int = 32
    rows: list[int] = field(default_factory=lambda: [2, 4, 8, 16])
    chunk: int = 512
    batch: int = 1
    beside_exact: bool = True


@dataclass(frozen=True)
class Measurement:
    """A measurement that rows repeat.

    kind: "prefill", "chunked_prefill" or "decode".
    rows: tokens per decoding step.
    exact: whether it runs under exact ALiBi instead of the cell's attention.
    """

    kind: str
    rows: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Throughput:
    generates: int = 0
    name: str = "throughput"
    options: type = Options
    rows_are: str = "repeats"
    needs_model: bool = True
    runs_weights: bool = True
    needs_trained_weights: bool = False
    natural_text: bool = False

    def tasks(self, options: Options) -> list[PlannedTask]:
        return [PlannedTask(Throughput(generates=options.decode_tokens), options)]

    def identity(self, options: Options) -> dict:
        counts = {name: getattr(options, name) for name in ("decode_tokens", "chunk", "batch", "beside_exact")}
        return {**counts, "rows": sorted(set(options.rows))}

    def amount(self, options: Options, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return 1 + options.repeats * len(measurements(options, cell)), options.batch

    def identity_on(self, options: Options, cell: Cell) -> dict:
        return {}

    def check(self, options: Options, cell: Cell) -> None:
        for name in ("repeats", "decode_tokens", "chunk", "batch"):
            if getattr(options, name) < 1:
                raise UserError(f"task.throughput.{name} must be at least 1, not {getattr(options, name)}.")
        limit = min(options.decode_tokens, options.chunk)
        if any(not 2 <= rows <= limit for rows in options.rows):
            raise UserError(
                f"task.throughput.rows must be numbers from 2 to {limit}, the smaller of decode_tokens and chunk, not "
                f"{list(options.rows)}; one row at a time is always measured."
            )
        if cell.attention.by_score:
            raise UserError(
                f"task=throughput is refused with attn={cell.attention.name}: an oracle computes all scores and saves "
                "no time. Use another attn."
            )
        if cell.attention.native:
            raise UserError(
                f"task=throughput is refused with attn={cell.attention.name}: a speed is recorded only beside its "
                "error, and the checkpoint's own attention gives none that could be checked. Use attn=alibi."
            )
        if cell.context < MIN_CONTEXT:
            raise UserError(f"task=throughput needs a context of at least {MIN_CONTEXT} tokens, not {cell.context}.")

    def prepare(self, options: Options, cell: Cell, samples: int, folder: Path) -> None:
        return None

    def row(self, line: Mapping[str, Any]) -> CountsRow | RepeatRow:
        return (CountsRow if line.get("measurement") == "facts" else RepeatRow).read(line)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[CountsRow] | list[RepeatRow]]:
        """Yield row 0 with the counts, then repeats of all measurements in turn.

        Each attempt checks the kernel before timing, and all its rows hold the errors.
        """
        from harness.tasks.throughput.devices import energy_meter
        from harness.tasks.throughput.session import Session, count_costs, random_prompt

        cell, loaded, arch = context.cell, context.model(), context.cell.model.architecture
        tokens = cell.context + options.decode_tokens
        ids = random_prompt(arch, options.batch, tokens, cell.data_seed, loaded.model.device)
        planned = measurements(options, cell)
        weights, exact_weights = cell.weights(DRAW), cell.with_attention(EXACT).weights(DRAW)
        assert weights is not None and exact_weights is not None, "refused by `check`"
        sessions = {
            exact: Session(
                loaded,
                exact_weights if exact else weights,
                ids,
                cell.context,
                options.chunk,
                evict=cell.attention.evict and not exact,
            )
            for exact in sorted({m.exact for m in planned}, reverse=True)
        }
        meter = energy_meter(loaded.model.device)
        for session in sessions.values():  # the cell's attention last
            facts = session.check(sorted({m.rows for m in planned if m.rows}))
            session.release_cache()
        errors = {name: facts[name] for name in ("error", "error_cached")}
        if 0 not in context.done:
            yield [CountsRow(key=0, draw=DRAW, measurement="facts", **facts, **count_costs(session, arch))]
        for key in range(1, context.samples):
            if key in context.done:
                continue
            measurement = planned[(key - 1) % len(planned)]
            for exact, other in sessions.items():
                if exact != measurement.exact:
                    other.release_cache()
            before = meter() if meter else 0.0
            times = sessions[measurement.exact].measure(measurement.kind, measurement.rows)
            joules = meter() - before if meter else None
            description = {"measurement": measurement.kind, "rows": measurement.rows, "exact": measurement.exact}
            repeat = (key - 1) // len(planned)
            yield [RepeatRow(key=key, draw=DRAW, repeat=repeat, **description, **times, joules=joules, **errors)]

    def metrics(self, options: Options, rows: Sequence[CountsRow | RepeatRow], *, clustered: bool) -> dict[str, Metric]:
        return figures(rows)


def measurements(options: Options, cell: Cell) -> list[Measurement]:
    """Return the measurements in the order of their rows.

    Prefills are adjacent, and decoding follows the chunked prefill that fills its cache. With
    eviction there is no prefill in one piece.
    """
    reference = [True] if options.beside_exact and cell.attention != EXACT else []
    kinds = [False, *reference]
    rows = [1, *sorted(set(options.rows))]
    planned = [] if cell.attention.evict else [Measurement("prefill", 0, exact) for exact in kinds]
    for exact in kinds:
        planned += [Measurement("chunked_prefill", 0, exact), *(Measurement("decode", r, exact) for r in rows)]
    return planned


THROUGHPUT = Throughput()
