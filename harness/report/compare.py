"""Compare two stores, or one store at two commits, sample by sample, and list regressions."""

import io
import os
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

# By a word of the unit: the sign of an improvement (-1 if less is better) and the smallest ratio
# that counts as a change. Bytes are reproducible, and a kernel's error is like a rounding. Two
# runs on one machine differ by a fifth; speed-ups, timed by turns within one run, do not.
UNITS = {
    "byte": (-1, 1.01),
    "relative error": (-1, 2.0),
    "times exact": (1, 1.1),
    "ms": (-1, 1.25),
    "joule": (-1, 1.25),
    **dict.fromkeys(("nats", "bits", "perplexity"), (-1, 1.0)),
}
FINISHED = ("ok", "unsupported")  # from best to worst


@dataclass(frozen=True)
class Change:
    """The change of a record's status, or of one of its metrics.

    verdict: better, worse, same, failed, gone or new.
    """

    record: Record
    metric: str
    before: str
    after: str
    difference: str
    verdict: str


def open_store(source: str, results: Path, scratch: Path) -> Path:
    """Return the folder of a store, extracted from git if it is named by a commit.

    Args:
        source: a folder, COMMIT:FOLDER, or COMMIT for the folder `results` at this commit.
        results: the default folder of a commit.
        scratch: folder for the extracted store.

    Raises:
        UserError: if there is no such folder or commit.
    """
    if os.path.isdir(source):
        return Path(source)
    commit, _, folder = source.partition(":")
    resolved = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") if commit and commit[0] != "-" else None
    if resolved is None:
        raise UserError(f"{source!r} is neither a folder nor a commit: give a results folder, COMMIT or COMMIT:FOLDER.")
    folder = folder or _within_clone(results)
    archive = _git("archive", "--format=tar", f"{commit}:{folder}")
    if archive is None:
        raise UserError(f"Commit {commit} has no folder {folder}: give COMMIT:FOLDER with a folder that git keeps.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(scratch, filter="data")
    return scratch


def _within_clone(folder: Path) -> str:
    """Return the name of a folder as git knows it."""
    place = Path(os.path.realpath(folder))
    return str(place.relative_to(ROOT) if place.is_relative_to(ROOT) else folder)


def changes(before: Iterable[Record], after: Iterable[Record]) -> list[Change]:
    """Return the changes between two stores, record by record.

    Counterparts agree in the model's name, attention, context, draws, prompts, task and options;
    weights, kernel and code may differ.
    """
    before, after = list(before), list(after)
    # an unfinished record has no options yet; its counterpart may have them
    settings = {(r.cell_id, r.store.task_id): _setting(r) for r in (*before, *after) if r.outcome}
    old, new = _by_setting(before, settings), _by_setting(after, settings)
    changed = []
    for setting, record in old.items():
        if setting not in new:
            changed.append(Change(record, "", record.status, "not there", "", "gone"))
        else:
            changed += _changes(record, new[setting])
    changed += [Change(r, "", "not there", r.status, "", "new") for setting, r in new.items() if setting not in old]
    return changed


def print_changes(changes: Sequence[Change]) -> None:
    """Print the changes, regressions first, and their number by verdict."""
    order = ("failed", "worse", "gone", "better", "new", "same")
    rows = [
        [
            *(c.record.cell.model, c.record.cell.label, str(c.record.context), c.record.task),
            *(c.metric, c.before, c.after, c.difference, c.verdict),
        ]
        for c in sorted(changes, key=lambda c: order.index(c.verdict))
        if c.verdict != "same"
    ]
    columns = ["model", "attention", "context", "task", "metric", "A", "B", "B minus A", "verdict"]
    if rows:
        Table("B against A", columns, rows, []).print()
    counts = Counter(c.verdict for c in changes)
    summary = ", ".join(f"{counts[v]} {v}" for v in order if counts[v]) or "There is nothing to compare"
    say(
        f"{summary}. Better or worse: the 95 % interval of the paired difference lies on one side of zero; a speed-up "
        "over exact ALiBi changed by more than 10 % and a time without one by more than 25 %, both with quartiles "
        "that lie apart; bytes by more than 1 %, the error of a kernel by more than a factor of two."
    )


def regressions(changes: Iterable[Change]) -> list[Change]:
    """Return the changes for the worse."""
    return [c for c in changes if c.verdict in ("worse", "failed")]


def _changes(old: Record, new: Record) -> list[Change]:
    """Return the change of the status, if any, and of every metric that both records have."""
    changes = []
    if new.status != old.status:
        ranks = [FINISHED.index(r.status) if r.status in FINISHED else len(FINISHED) for r in (old, new)]
        verdict = "failed" if ranks[1] > ranks[0] else "better" if ranks[1] < ranks[0] else "same"
        changes.append(Change(new, "", old.status, new.status, "", verdict))
    paired_fields = {f"{new.task}/answer_nll": ("nll", -1)}
    if new.score:
        paired_fields[new.headline] = ("score", 1)
    by_turns = any(m.unit == "times exact" for r in (old, new) for m in r.metrics.values())
    for name, before in old.metrics.items():
        after = new.metrics.get(name)
        if after is None:
            continue
        intervals = table.interval(before), table.interval(after)
        if name in paired_fields:
            changes.append(Change(new, name, *intervals, *_paired_difference(old, new, *paired_fields[name])))
        elif (word := _known_unit(before)) and not (by_turns and word == "ms"):
            changes.append(Change(new, name, *intervals, "", _verdict(before, after, *UNITS[word])))
    return changes


def _paired_difference(old: Record, new: Record, field: str, sign: int) -> tuple[str, str]:
    """Return the paired difference of a field and its verdict; sign: 1 if more is better, or -1."""
    change = reader.difference(new, old, field)
    if change is None:
        return "no prompts in common", "same"
    if change.low is None:  # no interval for one prompt, or for equal changes: sign test
        decided = change.value != 0 and 2.0 ** (1 - change.n) < 1 - LEVEL
    else:
        decided = change.low > 0 or (change.high is not None and change.high < 0)
    return table.signed(change), ("better" if sign * change.value > 0 else "worse") if decided else "same"


def _known_unit(metric: Metric) -> str | None:
    """Return the key of UNITS in the metric's unit, if any."""
    words = metric.unit.split()
    return next((unit for unit in UNITS if unit in (" ".join(words), *words, *(w.rstrip("s") for w in words))), None)


def _verdict(old: Metric, new: Metric, sign: int, ratio: float) -> str:
    """Return "same", or "better" or "worse" if two values differ by more than `ratio`.

    Their intervals, if any, must not overlap. sign: 1 if more is better, -1 if less.
    """
    low, high = sorted((old, new), key=lambda m: m.value)
    if high.value <= ratio * low.value:
        return "same"
    if low.high is not None and high.low is not None and low.high >= high.low:
        return "same"
    return "better" if (high is new) == (sign > 0) else "worse"


def _by_setting(records: Iterable[Record], settings: dict[tuple, tuple]) -> dict[tuple, Record]:
    """Return the records by their setting.

    Where several kernels or models share a setting, these are part of the key. Of timings that
    differ in commit or versions alone, the newest is kept.
    """
    newest: dict[tuple, Record] = {}
    for r in sorted(records, key=lambda r: r.start):
        task_id = None if r.rows_are == "repeats" else r.store.task_id
        newest[r.cell_id, settings.get((r.cell_id, r.store.task_id), _setting(r)), task_id] = r
    setting_of = {key: key[1] for key in newest}
    shared = {s for s, n in Counter(setting_of.values()).items() if n > 1}

    def name(key: tuple, r: Record) -> tuple:
        if setting_of[key] not in shared:
            return setting_of[key]
        return *setting_of[key], str(r.identity.model), r.identity.kernel, key[2]

    return {name(key, r): r for key, r in newest.items()}


def _setting(r: Record) -> tuple:
    identity = r.identity
    fields = identity.dtype, identity.context, identity.seed, identity.draws, identity.data_seed
    machine = [r.options.get(name) for name in ("device", "threads")] if r.rows_are == "repeats" else []
    return (r.cell.model, str(identity.attn.as_json()), *fields, r.task, str(r.asked), *machine)


def _git(*arguments: str) -> bytes | None:
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, cwd=ROOT, check=False)
    except OSError:
        return None
    return process.stdout if process.returncode == 0 else None
