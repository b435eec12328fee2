"""Two stores, or one store at two commits: what changed, sample by sample, and what got worse."""

import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.analysis import reader, table
from harness.analysis.reader import Record
from harness.common.errors import UserError
from harness.common.paths import ROOT
from harness.common.stats import LEVEL, Metric
from harness.common.table import Table, say

# Words in a unit, whether less is better (-1) or more (1), and the least ratio that counts as a
# change. Bytes repeat themselves; the error of a kernel is of the size of a rounding; two runs on
# one machine differ by a fifth, which speed-ups, timed by turns within one run, do not show.
UNITS = {
    "byte": (-1, 1.01),
    "relative error": (-1, 2.0),
    "times exact": (1, 1.1),
    "ms": (-1, 1.25),
    "joule": (-1, 1.25),
    **dict.fromkeys(("nats", "bits", "perplexity"), (-1, 1.0)),
}
DONE = ("ok", "unsupported")


@dataclass(frozen=True)
class Change:
    """What became of one record, or of one of its metrics: better, worse, same, failed, gone or
    new."""

    record: Record
    metric: str
    before: str
    after: str
    difference: str
    verdict: str


def opened(where: str, results: Path, scratch: Path) -> Path:
    """A store: a folder, or what git has at COMMIT:FOLDER, or at COMMIT of the folder `results`,
    put into `scratch`."""
    if Path(where).is_dir():
        return Path(where)
    commit, _, folder = where.partition(":")
    inside = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") if commit and commit[0] != "-" else None
    if inside is None:
        raise UserError(f"{where!r} is neither a folder nor a commit: give a results folder, COMMIT or COMMIT:FOLDER.")
    folder = folder or str(results.resolve().relative_to(ROOT) if results.resolve().is_relative_to(ROOT) else results)
    archive = _git("archive", "--format=tar", f"{commit}:{folder}")
    if archive is None:
        raise UserError(f"Commit {commit} has no folder {folder}: give COMMIT:FOLDER with a folder that git keeps.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(scratch, filter="data")
    return scratch


def changes(before: Iterable[Record], after: Iterable[Record]) -> list[Change]:
    """Every record of either store against its counterpart in the other: the same model by name,
    attention, context, draws, prompts, task and options. Weights, kernel and code may differ: that
    is what is compared."""
    before, after = list(before), list(after)
    # what has only begun has no options yet; in the other store it may have
    known = {(r.cell_id, r.store.task_id): _setting(r) for r in (*before, *after) if r.outcome}
    old, new = _by_setting(before, known), _by_setting(after, known)
    found = []
    for setting, record in old.items():
        if setting not in new:
            found.append(Change(record, "", record.status, "not there", "", "gone"))
        else:
            found += _changes(record, new[setting])
    found += [Change(r, "", "not there", r.status, "", "new") for setting, r in new.items() if setting not in old]
    return found


def print_changes(found: Sequence[Change]) -> None:
    """Print what changed, what is worse first, and how many there are of each kind."""
    order = ("failed", "worse", "gone", "better", "new", "same")
    rows = [
        [
            *(c.record.cell.model, c.record.cell.label, str(c.record.context), c.record.task),
            *(c.metric, c.before, c.after, c.difference, c.verdict),
        ]
        for c in sorted(found, key=lambda c: order.index(c.verdict))
        if c.verdict != "same"
    ]
    columns = ["model", "attention", "context", "task", "metric", "A", "B", "B minus A", "verdict"]
    if rows:
        Table("B against A", columns, rows, []).print()
    counts = Counter(c.verdict for c in found)
    told = ", ".join(f"{counts[v]} {v}" for v in order if counts[v]) or "There is nothing to compare"
    say(
        f"{told}. Better or worse: the 95 % interval of the paired difference lies on one side of zero; a speed-up "
        "over exact ALiBi changed by more than 10 % and a time without one by more than 25 %, both with quartiles "
        "that lie apart; bytes by more than 1 %, the error of a kernel by more than a factor of two."
    )


def regressions(found: Iterable[Change]) -> list[Change]:
    return [c for c in found if c.verdict in ("worse", "failed")]


def _changes(old: Record, new: Record) -> list[Change]:
    """The status if it changed, and every figure that both have."""
    found = []
    if new.status != old.status:
        rank = [DONE.index(r.status) if r.status in DONE else len(DONE) for r in (old, new)]
        verdict = "failed" if rank[1] > rank[0] else "better" if rank[1] < rank[0] else "same"
        found.append(Change(new, "", old.status, new.status, "", verdict))
    paired = {f"{new.task}/answer_nll": ("nll", -1)}
    if new.score:
        paired[new.headline] = ("score", 1)
    by_turns = any(m.unit == "times exact" for r in (old, new) for m in r.metrics.values())
    for name, before in old.metrics.items():
        after = new.metrics.get(name)
        if after is None:
            continue
        ends = table.interval(before), table.interval(after)
        if name in paired:
            found.append(Change(new, name, *ends, *_paired(old, new, *paired[name])))
        elif (word := _unit(before)) and not (by_turns and word == "ms"):
            found.append(Change(new, name, *ends, "", _apart(before, after, *UNITS[word])))
    return found


def _paired(old: Record, new: Record, field: str, sign: int) -> tuple[str, str]:
    """The paired difference of a row field, and its verdict; `sign` is 1 if more is better, -1 if
    less."""
    change = reader.difference(new, old, field)
    if change is None:
        return "no prompts in common", "same"
    if change.low is None:  # of a single prompt, or of prompts that all moved alike, for which the sign test speaks
        apart = change.value != 0 and 2.0 ** (1 - change.n) < 1 - LEVEL
    else:
        apart = change.low > 0 or (change.high is not None and change.high < 0)
    return table.signed(change), ("better" if sign * change.value > 0 else "worse") if apart else "same"


def _unit(metric: Metric) -> str | None:
    """The word of UNITS that the metric's unit has."""
    words = metric.unit.split()
    return next((unit for unit in UNITS if unit in (" ".join(words), *words, *(w.rstrip("s") for w in words))), None)


def _apart(old: Metric, new: Metric, sign: int, ratio: float) -> str:
    """Whether the larger of two figures is more than `ratio` times the other, and their intervals,
    if they have any, lie apart; `sign` is 1 if more is better, -1 if less."""
    low, high = sorted((old, new), key=lambda m: m.value)
    if high.value <= ratio * low.value:
        return "same"
    if low.high is not None and high.low is not None and low.high >= high.low:
        return "same"
    return "better" if (high is new) == (sign > 0) else "worse"


def _by_setting(found: Iterable[Record], known: dict[tuple, tuple]) -> dict[tuple, Record]:
    """Records by what names them to a person; where a store holds several kernels or models of a
    name, by these too. Of timings that differ in commit or versions alone the newest stands."""
    chosen: dict[tuple, Record] = {}
    for r in sorted(found, key=lambda r: r.start):
        task_id = None if r.rows_are == "repeats" else r.store.task_id
        chosen[r.cell_id, known.get((r.cell_id, r.store.task_id), _setting(r)), task_id] = r
    short = {key: key[1] for key in chosen}
    several = {s for s, n in Counter(short.values()).items() if n > 1}

    def name(key: tuple, r: Record) -> tuple:
        if short[key] not in several:
            return short[key]
        return *short[key], str(r.identity.model), r.identity.kernel, key[2]

    return {name(key, r): r for key, r in chosen.items()}


def _setting(r: Record) -> tuple:
    identity = r.identity
    kept = identity.dtype, identity.context, identity.seed, identity.draws, identity.data_seed
    machine = [r.options.get(name) for name in ("device", "threads")] if r.rows_are == "repeats" else []
    return (r.cell.model, str(identity.attn.as_json()), *kept, r.task, str(r.asked), *machine)


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, cwd=ROOT, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
