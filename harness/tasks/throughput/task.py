"""Throughput: time of a prompt and of the tokens after it, memory and operations, each beside the
error of what was timed."""

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

DRAW = 0  # of the masks: the one that is timed
SHORTEST = 32  # tokens: the check samples rows at each quarter


@dataclass
class Options:
    """repeats: of each measurement; more of them extend an earlier run. decode_tokens: tokens fed
    after the prompt, which a repeat takes back. rows: how many tokens are decoded at once beside
    one, as speculative decoding does. chunk: tokens of a piece of the chunked prefill. batch:
    sequences at a time. beside_exact: time exact ALiBi by turns with the cell's own attention, for
    a ratio that a change in the machine's load does not touch."""

    repeats: int = 10
    decode_tokens: int = 32
    rows: list[int] = field(default_factory=lambda: [2, 4, 8, 16])
    chunk: int = 512
    batch: int = 1
    beside_exact: bool = True


@dataclass(frozen=True)
class Measurement:
    """What a row is a repeat of: "prefill", "chunked_prefill", or "decode" with `rows` tokens a
    step; under the cell's own attention, or under exact ALiBi."""

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
        most = min(options.decode_tokens, options.chunk)
        if any(not 2 <= rows <= most for rows in options.rows):
            raise UserError(
                f"task.throughput.rows must be numbers from 2 to {most}, the smaller of decode_tokens and chunk, not "
                f"{list(options.rows)}; one row at a time is always measured."
            )
        if cell.attention.native:
            raise UserError(
                f"task=throughput is refused with attn={cell.attention.name}: a speed is recorded only beside its "
                "error, and the checkpoint's own attention gives none that could be checked. Use attn=alibi."
            )
        if cell.context < SHORTEST:
            raise UserError(f"task=throughput needs a context of at least {SHORTEST} tokens, not {cell.context}.")

    def prepare(self, options: Options, cell: Cell, samples: int, folder: Path) -> None:
        return None

    def row(self, line: Mapping[str, Any]) -> CountsRow | RepeatRow:
        return (CountsRow if line.get("measurement") == "facts" else RepeatRow).read(line)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[CountsRow] | list[RepeatRow]]:
        """Row 0 holds what is counted, once; then the measurements by turns, a repeat of each after
        the other. Every attempt checks what it times, and each of its rows carries the errors."""
        from harness.tasks.throughput.devices import energy_meter
        from harness.tasks.throughput.session import Session, counts, prompt

        cell, loaded, arch = context.cell, context.model(), context.cell.model.architecture
        ids = prompt(arch, options.batch, cell.context + options.decode_tokens, cell.data_seed, loaded.model.device)
        found = measurements(options, cell)
        own, beside = cell.weights(DRAW), cell.with_attention(EXACT).weights(DRAW)
        assert own is not None and beside is not None, "refused by `check`"
        sessions = {
            exact: Session(
                loaded,
                beside if exact else own,
                ids,
                cell.context,
                options.chunk,
                evict=cell.attention.evict and not exact,
            )
            for exact in sorted({m.exact for m in found}, reverse=True)
        }
        meter = energy_meter(loaded.model.device)
        for session in sessions.values():  # the cell's own last
            facts = session.check(sorted({m.rows for m in found if m.rows}))
            session.forget()
        errors = {name: facts[name] for name in ("error", "error_cached")}
        if 0 not in context.done:
            yield [CountsRow(key=0, draw=DRAW, measurement="facts", **facts, **counts(session, arch))]
        for key in range(1, context.samples):
            if key in context.done:
                continue
            measured = found[(key - 1) % len(found)]
            for exact, other in sessions.items():
                if exact != measured.exact:
                    other.forget()
            before = meter() if meter else 0.0
            times = sessions[measured.exact].timed(measured.kind, measured.rows)
            joules = meter() - before if meter else None
            about = {"measurement": measured.kind, "rows": measured.rows, "exact": measured.exact}
            repeat = (key - 1) // len(found)
            yield [RepeatRow(key=key, draw=DRAW, repeat=repeat, **about, **times, joules=joules, **errors)]

    def metrics(self, options: Options, rows: Sequence[CountsRow | RepeatRow], *, clustered: bool) -> dict[str, Metric]:
        return figures(rows)


def measurements(options: Options, cell: Cell) -> list[Measurement]:
    """In the order of their rows: prefills next to each other, decoding after the chunked prefill
    that fills its cache. A cache that evicts is filled in chunks, so that there is no prefill in
    one piece."""
    beside = [True] if options.beside_exact and cell.attention != EXACT else []
    kinds = [False, *beside]
    rows = [1, *sorted(set(options.rows))]
    found = [] if cell.attention.evict else [Measurement("prefill", 0, exact) for exact in kinds]
    for exact in kinds:
        found += [Measurement("chunked_prefill", 0, exact), *(Measurement("decode", r, exact) for r in rows)]
    return found


THROUGHPUT = Throughput()
