"""Two stores, or one store at two commits: what changed, sample by sample, and what got worse."""

import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import reader, table
from harness.config import ROOT
from harness.errors import UserError
from harness.reader import Record

# words in the units of which less is better, and for a figure without an interval the ratio that counts as a change:
# what is counted repeats itself, the error of a kernel is of the size of a rounding
LESS_IS_BETTER = {
    "byte": 1.01,
    "relative error": 2.0,
    **dict.fromkeys(("ms", "nats", "bits", "perplexity", "joule", "second"), 1.05),
}
DONE = ("ok", "unsupported")


@dataclass(frozen=True)
class Change:
    """What became of one record, or of one of its metrics: better, worse, same, failed, gone or new."""

    record: Record
    metric: str
    before: str
    after: str
    difference: str
    verdict: str


def opened(where: str, results: Path, scratch: Path) -> Path:
    """A store: a folder, or what git has at COMMIT:FOLDER, or at COMMIT of the folder `results`, put into `scratch`."""
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
    """Every record of either store against its counterpart in the other: the same model by name, attention, context,
    draws, prompts, task and options. Weights, kernel and code may differ: that is what is compared."""
    old, new = _by_setting(before), _by_setting(after)
    found = []
    for setting, record in old.items():
        if setting not in new:
            found.append(Change(record, "", record.status, "not there", "", "gone"))
        else:
            found += _changes(record, new[setting])
    found += [Change(r, "", "not there", r.status, "", "new") for setting, r in new.items() if setting not in old]
    return found


def say(found: Sequence[Change]) -> None:
    """Print what changed, what is worse first, and how many there are of each kind."""
    order = ("failed", "worse", "gone", "better", "new", "same")
    rows = [
        [
            *(c.record.cell["model"], c.record.cell["label"], str(c.record.context), c.record.task),
            *(c.metric, c.before, c.after, c.difference, c.verdict),
        ]
        for c in sorted(found, key=lambda c: order.index(c.verdict))
        if c.verdict != "same"
    ]
    columns = ["model", "attention", "context", "task", "metric", "A", "B", "B minus A", "verdict"]
    if rows:
        table.Table("B against A", columns, rows, []).print()
    counts = Counter(c.verdict for c in found)
    told = ", ".join(f"{counts[v]} {v}" for v in order if counts[v]) or "There is nothing to compare"
    table.say(
        f"{told}. Better or worse: the 95 % interval of the paired difference lies on one side of zero; for times, "
        "whose repeats cannot be paired, the two intervals do not overlap; bytes, which have none, changed by more "
        "than 1 %, and the error of a kernel by more than a factor of two."
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
    for name, before in old.metrics.items():
        after = new.metrics.get(name)
        if after is None:
            continue
        ends = table.interval(before), table.interval(after)
        if name in paired:
            found.append(Change(new, name, *ends, *_paired(old, new, *paired[name])))
        elif word := next((word for word in LESS_IS_BETTER if word in str(before.get("unit"))), None):
            found.append(Change(new, name, *ends, "", _apart(before, after, LESS_IS_BETTER[word])))
    return found


def _paired(old: Record, new: Record, field: str, sign: int) -> tuple[str, str]:
    """The paired difference of a row field, and its verdict; `sign` is 1 if more is better, -1 if less."""
    change = reader.difference(new, old, field)
    if change is None:
        return "no prompts in common", "same"
    apart = change.low is not None and (change.low > 0 or change.high < 0)
    return table.signed(change), ("better" if sign * change.value > 0 else "worse") if apart else "same"


def _apart(old: dict, new: dict, ratio: float) -> str:
    """Of two figures of which less is better: whether their intervals lie apart, and how; without intervals, whether
    one is more than `ratio` times the other."""
    if None in (old["low"], old["high"], new["low"], new["high"]):
        low, high = old["value"] / ratio, old["value"] * ratio
        return "worse" if new["value"] > high else "better" if new["value"] < low else "same"
    return "worse" if new["low"] > old["high"] else "better" if new["high"] < old["low"] else "same"


def _by_setting(found: Iterable[Record]) -> dict[tuple, Record]:
    """Records by what names them to a person; where a store holds several kernels or models of a name, by these too."""

    def setting(r: Record) -> tuple:
        identity = r.cell["identity"]
        kept = [identity.get(name) for name in ("dtype", "context", "seed", "draws", "data_seed")]
        return (r.cell["model"], str(identity["attn"]), *kept, r.task, str(r.asked))

    found = list(found)
    several = {s for s, n in Counter(map(setting, found)).items() if n > 1}
    full = {r.cell_id: (str(r.cell["identity"]["model"]), r.cell["identity"].get("kernel")) for r in found}
    return {(*setting(r), *(full[r.cell_id] if setting(r) in several else ())): r for r in found}


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, cwd=ROOT, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
