"""Run one odd input as its user would, and hold the answer to what must come of it."""

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from harness.analysis import reader
from harness.tasks.retrieval import prompts
from tests.odd.cases import Case, Opposite, Stock
from tests.zygote import Zygote

SAMPLES = 10
COMMON = ("attn=alibi", "context=256", f"samples={SAMPLES}", "references=none", "tracking=disabled", "device=cpu")
LINES = 4  # of a refusal, both streams together


@dataclass(frozen=True)
class Outcome:
    """answer: the accuracy, or the sentence. wrong: what is not as it must be; None if all is."""

    kind: str
    odd: str
    answer: float | str
    seconds: float
    wrong: str | None

    def as_dict(self) -> dict:
        return asdict(self)


def run(zygote: Zygote, case: Case, place: Path) -> Outcome:
    """place: a folder of this case's own: its files and its store."""
    began = time.monotonic()
    arguments = [*COMMON, *case.task, *case.make(place / "made"), f"results={place / 'results'}"]
    before = None
    if case.edit is not None:
        before, wrong = _ran(zygote, arguments, case)
        if wrong:
            return Outcome(case.kind, case.odd, str(before), time.monotonic() - began, f"before the edit: {wrong}")
        case.edit(place)
    if isinstance(case.expected, str):
        answer, wrong = _refused(zygote, arguments, case.expected, place)
    else:
        answer, wrong = _ran(zygote, arguments, case)
        if wrong is None:
            expected = _expected(case, before, place)
            wrong = None if abs(answer - expected) < 1e-9 else f"{answer} in place of {expected}"
    shown = answer.replace(str(place), "") if isinstance(answer, str) else answer
    return Outcome(case.kind, case.odd, shown, round(time.monotonic() - began, 2), wrong)


def _ran(zygote: Zygote, arguments: list[str], case: Case) -> tuple[float | str, str | None]:
    code, document, out, err = _call(zygote, arguments)
    if code != 0 or document.get("status") != "ok":
        return document.get("message") or err, f"exit code {code}: {err[-2000:]}"
    return document["metrics"][case.metric]["value"], None


def _refused(zygote: Zygote, arguments: list[str], words: str, place: Path) -> tuple[float | str, str | None]:
    code, document, out, err = _call(zygote, arguments)
    said = document.get("message", "")
    lines = (out + err).strip().splitlines()
    if code != 2 or document.get("status") != "invalid" or not re.search(words, said, re.DOTALL):
        return said or str(document.get("metrics")), f"exit code {code} and {words!r} expected: {said} {err[-2000:]}"
    if len(lines) > LINES or any(record.rows for record in reader.records(place / "results")):
        return said, f"{len(lines)} lines, or rows were written: {out} {err}"
    return said, None


def _call(zygote: Zygote, arguments: list[str]) -> tuple[int, dict, str, str]:
    process = zygote.start(arguments)
    out, err = process.communicate(timeout=300)
    try:
        document = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        document = {}
    return process.returncode, document, out, err


def _expected(case: Case, before: float | None, place: Path) -> float:
    if isinstance(case.expected, Stock):
        raw = json.loads((place / "made" / "config.json").read_text())
        case.expected.edit(raw)
        (place / "made" / "config.json").write_text(json.dumps(raw))
        return stock_accuracy(place / "made", place / "results")
    if isinstance(case.expected, Opposite):
        return 1 - before
    return case.expected


@torch.inference_mode()
def stock_accuracy(folder: Path, results: Path) -> float:
    """Of transformers' own model, one prompt of the store's retrieval data after the other,
    greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (data,) = (results / "data").iterdir()
    right = []
    for sample in prompts.load_samples(data)[:SAMPLES]:
        ids = tokenizer(sample["prompt"], return_tensors="pt").input_ids
        for _ in range(16):  # no cache and no generation_config.json
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        found = re.search(r"\d+", tokenizer.decode(ids[0, -16:]).partition("<|endoftext|>")[0])
        right.append(found is not None and found.group() == sample["value"])
    return sum(right) / len(right)
