"""Stores made by hand: as many cells as a test wants, without a model."""

import itertools
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from harness.common import stats
from harness.common.files import short_hash

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ENVIRONMENT = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "python": "3.11",
    "packages": {"torch": "2"},
    "device": "cpu",
    "host": "h",
    "start": "2026-01-01T00:00:00Z",
    "command": "python -m harness.run masks=4",
}
NOISE = {"haystack": "noise"}
ALIBI = {"name": "alibi", "masks": None, "sampler": None, "weights": None, "cutoff": None}


def plsh(masks: int, weights: str = "count", sampler: str = "gamma") -> dict:
    return {"name": "plsh", "masks": masks, "sampler": sampler, "weights": weights, "cutoff": None}


def window(cutoff: float) -> dict:
    return {"name": "window", "masks": None, "sampler": None, "weights": None, "cutoff": cutoff}


def sliding(tokens: int) -> dict:
    return {"name": "sliding", "masks": None, "sampler": None, "weights": None, "cutoff": None, "tokens": tokens}


def sliding_of(pairs: float, context: int) -> tuple[int, float]:
    """The tokens of the sliding window of nearest cost, and its pairs per row."""
    # one token more is one pair more in every row that is that far from the first token
    costs = itertools.accumulate(range(context - 1, 0, -1), initial=0)
    return min(((w, cost / context) for w, cost in enumerate(costs, 1)), key=lambda found: abs(found[1] - pairs))


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def cell(
    results: Path,
    attn: dict,
    *,
    model: str = "m",
    context: int = 256,
    seed: int = 0,
    fused: float,
    passes: float | None = None,
    label: str | None = None,
) -> Path:
    """cell.json alone; returns the cell's folder."""
    draws = 4 if attn["name"] == "plsh" else None
    identity = {"model": {"weights": model}, "dtype": "float32", "attn": attn, "kernel": "auto", "context": context}
    identity |= {"seed": seed if draws else None, "draws": draws, "data_seed": 0}
    identity |= {"made": seed} if seed and not draws else {}
    name = short_hash(identity)
    pairs = {"fused": fused} | ({"passes": passes} if passes else {})
    windows = {"window": f"window T={attn['cutoff']}", "sliding": f"sliding window W={attn.get('tokens')}"}
    told = label or {"alibi": "exact ALiBi", **windows}.get(
        attn["name"], f"PLSH S={attn['masks']} {attn['sampler']} {attn['weights']}"
    )
    about = {"cell_id": name, "identity": identity, "model": model, "label": told, "pairs_per_row": pairs}
    write(results / name / "cell.json", about)
    return results / name


def task_folder(folder: Path, name: str = "retrieval", **options: object) -> Path:
    """The folder of a task with these options."""
    return folder / f"{name}-{short_hash({'cell': folder.name, 'task': name, 'options': options or NOISE})}"


def record(
    folder: Path, score: Callable[[int], float], *, samples: int = 40, task: str = "retrieval", **row: object
) -> None:
    """A finished retrieval record: `score` by sample, spread over five depths and distances up to
    the context."""
    about = json.loads((folder / "cell.json").read_text())["identity"]
    draws, context = about["draws"] or 1, about["context"]
    rows = []
    for k in range(samples):
        depth = DEPTHS[k % 5]
        distance = max(1, int((1 - depth) * (context - 40)) + 20)
        made = {"key": k, "score": score(k), "nll": 0.1, "prediction": "1", "target": "2", "depth": depth}
        rows.append({**made, "distance": distance, "doc_hash": f"d{k}", "draw": k % draws, "seconds": 0.1, **row})
    metrics = {}

    def rate(name: str, chosen: Iterable[dict]) -> None:
        chosen = list(chosen)
        hits, of = [r["score"] for r in chosen], [r["draw"] for r in chosen]
        metrics[f"{task}/{name}"] = stats.proportion(hits, of, clustered=draws > 1).as_dict()

    rate("accuracy", rows)
    for depth in DEPTHS:
        rate(f"accuracy_depth_{depth:g}", (r for r in rows if r["depth"] == depth))
    for b in sorted({r["distance"].bit_length() for r in rows}):
        rate(f"accuracy_distance_{1 << (b - 1)}_{1 << b}", (r for r in rows if r["distance"].bit_length() == b))
    if task == "retrieval":
        metrics["retrieval/answer_nll"] = {"value": 0.1, "low": 0.1, "high": 0.1, "n": samples, "unit": "nats"}
    place = task_folder(folder, task)
    part = place / "parts" / "a.jsonl"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = {"status": "ok", "samples": samples, "attempt": "a", "options": NOISE, "metrics": metrics}
    write(place / "task.json", {**done, "environment": ENVIRONMENT})


def on_text(
    folder: Path, score: Callable[[int, int], float], *, task: str = "fidelity", text: str = "0" * 64, samples: int = 32
) -> None:
    """A finished record of a task on text: `score` by sample and draw, lower is better."""
    about = json.loads((folder / "cell.json").read_text())["identity"]
    draws = about["draws"] or 1
    rows = [
        {"key": k, "score": score(k, k % draws), "doc_hash": f"w{k}", "draw": k % draws, "seconds": 0.1}
        for k in range(samples)
    ]
    name, unit = {"fidelity": ("kl", "nats per token"), "perplexity": ("bits_per_byte", "bits per byte")}[task]
    scores, of = [r["score"] for r in rows], [r["draw"] for r in rows]
    metrics = {f"{task}/{name}": stats.mean(scores, of, clustered=draws > 1, unit=unit).as_dict()}
    options = {"text": text, "stride": 8}
    place = task_folder(folder, task, **options)
    (place / "parts").mkdir(parents=True, exist_ok=True)
    (place / "parts" / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = {"status": "ok", "samples": samples, "attempt": "a", "options": options, "metrics": metrics}
    write(place / "task.json", {**done, "environment": ENVIRONMENT})


def versions(folder: Path, **packages: str) -> None:
    """Say in the records of a cell that they were made with these versions."""
    for path in folder.glob("*/task.json"):
        record = json.loads(path.read_text())
        record["environment"]["packages"] = {**record["environment"]["packages"], **packages}
        write(path, record)


def failed(folder: Path, error: str, message: str) -> None:
    """An attempt that ended in an error, without rows."""
    about = {"status": "error", "attempt": "a", "error": error, "message": message, "options": NOISE}
    write(task_folder(folder) / "attempts" / "a.json", {**about, "environment": ENVIRONMENT})


def timed(
    folder: Path,
    scale: float,
    *,
    speedup: float | None = None,
    commit: str = "c",
    device: str = "cpu",
    start: str = "2026-01-01",
) -> None:
    """A finished throughput record, `scale` times as slow and large as the smallest. speedup: of the
    prefill over exact ALiBi."""

    def metric(value: float, unit: str) -> dict:
        return {"value": value, "low": 0.9 * value, "high": 1.1 * value, "n": 10, "unit": unit}

    metrics = {
        "throughput/prefill_ms": metric(10.0 * scale, "ms"),
        "throughput/decode_ms_per_token": metric(1.0, "ms"),
        "throughput/peak_bytes": metric(1e9 * scale, "bytes"),
        "throughput/error": {"value": 3e-7, "low": None, "high": None, "n": 1, "unit": "relative error"},
    }
    if speedup:
        metrics["throughput/prefill_speedup"] = metric(speedup, "times exact")
        metrics["throughput/kv_allocated_bytes"] = {**metric(2**20 * scale, "bytes"), "n": 1}
    done = {"status": "ok", "samples": 0, "attempt": "a", "metrics": metrics, "rows_are": "repeats"}
    done["options"] = {"batch": 1, "device": device, "threads": 1, "commit": commit}
    done["environment"] = {**ENVIRONMENT, "start": start, "device": device}
    write(task_folder(folder, "throughput", **done["options"]) / "task.json", done)


def sweep(results: Path, *, models: Iterable[str], contexts: Iterable[int], masks: Iterable[int], samples: int) -> int:
    """A sweep: exact ALiBi, PLSH with two weights, the three windows of each number of masks. Returns
    how many cells."""
    chance = random.Random(0)
    todo: list[tuple[str, int, dict, float, dict]] = []
    for model in models:
        for context in contexts:
            whole = (context - 1) / 2
            todo.append((model, context, ALIBI, 0.98, {"fused": whole}))
            for s in masks:
                fused, passes = whole * s / (s + 20), whole * s / 4
                for weights in ("count", "rb"):
                    todo.append((model, context, plsh(s, weights), s / (s + 6), {"fused": fused, "passes": passes}))
                todo.append((model, context, window(float(s)), s / (s + 5), {"fused": fused}))
                tokens, pairs = sliding_of(fused, context)
                todo.append((model, context, sliding(tokens), s / (s + 5), {"fused": pairs}))
                todo.append((model, context, window(100.0 * s), 0.97, {"fused": min(passes, whole)}))
    for model, context, attn, rate, cost in todo:
        hits = [float(chance.random() < rate) for _ in range(samples)]
        record(cell(results, attn, model=model, context=context, **cost), hits.__getitem__, samples=samples)
    return len(todo)
