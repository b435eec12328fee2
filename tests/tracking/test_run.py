"""`harness.run` with tracking: its modes, its mistakes, and what must never leave the machine."""

import json
import re
import sys

import pytest

from harness.common.secrets import without_secrets
from harness.tracking.mirror import Outcome
from harness.tracking.tracker import Tracker
from tests.conftest import ROOT
from tests.tracking.conftest import FAST, KEY, cell_of, every_byte
from tests.tracking.server import ENTITY

SENTENCE = "The ferryman counted eleven lanterns along the quay before the fog took them one by one and he rowed home. "


def tracked(results) -> bool:
    return (results / "wandb").exists() or any(results.glob("*/wandb.json"))


@pytest.mark.parametrize("how", ["option", "variable"])
def test_disabled_leaves_no_trace(run, nobody, monkeypatch, results, how):
    monkeypatch.setenv("WANDB_MODE", "disabled" if how == "variable" else "online")
    _, _, _, err = run(*FAST, f"results={results}", f"tracking={'disabled' if how == 'option' else 'wandb'}")
    assert not tracked(results) and "W&B" not in err


def test_nobody_gets_an_offline_run_and_a_line(run, nobody, monkeypatch, results, tmp_path):
    """Without a key, by default; and nothing is written outside the results."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    code, _, _, err = run(*FAST, f"results={results}")
    assert not [*here.iterdir(), *(tmp_path / "home").iterdir()]
    (line,) = [line for line in err.splitlines() if "W&B" in line]
    assert code == 0 and "1 run offline" in line and "no API key" in line and f"harness.sync {results}" in line
    assert len(list((results / "wandb").glob("offline-run-*"))) == 1
    code, _, _, err = run(*FAST, f"results={results}", "tracking=offline")
    assert code == 0 and "W&B" not in err  # nothing new


def test_variables_of_wandb_are_defaults(run, account, monkeypatch, results):
    for name, value in {"PROJECT": "p1", "ENTITY": ENTITY, "RUN_GROUP": "g1", "RUN_ID": "not-mine"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    code, _, out, err = run(*FAST, f"results={results}", "tracking.tags=[a,b]")
    cell_id = cell_of(results)
    assert code == 0 and f"W&B: 1 run, {account.url}/{ENTITY}/p1/runs/{cell_id}" in err
    assert list(account.state.runs) == [cell_id]  # outside an agent the cell names its run
    run = account.state.runs[cell_id]
    assert (run["project"], run["entity"], run["groupName"]) == ("p1", ENTITY, "g1") and {"a", "b"} < set(run["tags"])
    assert json.loads(out.splitlines()[-1])["status"] == "ok" and account.url not in out


@pytest.mark.parametrize(("period", "calls"), [(60.0, [4]), (0.0, [1, 1, 1, 1])])
def test_short_cells_share_a_process_and_the_last_waits_for_the_table(run, monkeypatch, tmp_path, period, calls):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(Tracker, "PERIOD", period)
    seen = []

    def mirror(results, cells, **_):
        seen.append((len(cells), sum((results / c / "result.json").exists() for c in cells), sys.stdout.tell()))
        return Outcome("offline")

    monkeypatch.setattr("harness.tracking.mirror.mirror", mirror)
    assert run(*FAST[:-1], f"results={tmp_path}")[0] == 0
    assert [cells for cells, *_ in seen] == calls and all(cells == whole for cells, whole, _ in seen)
    assert [printed > 0 for *_, printed in seen] == [False] * (len(calls) - 1) + [True]


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (("tracking=wandbb",), "no tracking=wandbb", "Did you mean wandb?"),
        (("tracking.mode=onlin",), "'onlin' is not known", "Did you mean online?"),
        (("tracking.projct=x",), "no option 'tracking.projct'", "tracking.project"),
        (("+tracking.key=x",), "no option 'tracking.key'", "tracking."),
        (("tracking.project=a/b",), "is no W&B project", "none of /"),
        (("tracking.timeout=0",), "tracking.timeout must be", "seconds"),
        (("tracking.tags=['']",), "tracking.tags must have", "64"),
    ],
)
def test_mistakes_are_answered(run, tmp_path, arguments, says, hint):
    code, document, _, _ = run(*arguments, f"results={tmp_path}")
    assert code == 2 and says in document["message"] and hint in document["message"]


def test_a_wrong_mode_in_the_environment_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    code, document, _, _ = run(f"results={tmp_path}")
    assert code == 2 and "WANDB_MODE: 'ofline'" in document["message"]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_no_key_and_no_prompt_leaves_the_machine(run, account, results, tmp_path, mode):
    """Searched for in every byte of the store, of wandb's files and logs, of stdout and stderr, and
    of what the server received. The key is given where it does the most harm, on the command line;
    prompts belong to results/data."""
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 40)
    options = ("task.retrieval.haystack=text", f"task.retrieval.text={text}", "tracking.timeout=60")
    key = f"+hydra.job.env_set.WANDB_API_KEY={KEY}"
    code, _, out, err = run(*FAST, *options, key, f"results={results}", f"tracking.mode={mode}")
    assert code == 0 and "not mirrored" not in err
    store = every_byte(results)
    received = b"\n".join(account.state.received)
    assert KEY.encode() not in store + received + out.encode() + err.encode()
    assert b"env_set.WANDB_API_KEY=<WANDB_API_KEY>" in store  # it was there to be found
    data = every_byte(results / "data")
    assert SENTENCE[:40].encode() in data
    places = [p for p in results.rglob("*") if p.is_file() and results / "data" not in p.parents]
    kept = b"\n".join(p.read_bytes() for p in places)
    for piece in (SENTENCE[:40], SENTENCE[40:80]):
        assert piece.encode() not in kept + received + out.encode() + err.encode()
    if mode == "online":
        assert len(received) > 5000 and b"retrieval/accuracy" in received
    else:
        assert b"retrieval/accuracy" in every_byte(results / "wandb") and not account.state.received


def test_values_of_key_variables_are_replaced_by_their_names(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert without_secrets("get hf_0123456789abcdef false") == "get <HF_TOKEN> false"


def test_wandb_is_imported_by_the_uploading_process_and_the_report_alone():
    importing = re.compile(r"^\s*(import wandb|from wandb)", re.MULTILINE)
    files = [p for folder in ("harness", "kernels") for p in (ROOT / folder).rglob("*.py")]
    assert {p.name for p in files if importing.search(p.read_text())} == {"upload.py", "wandb_page.py"}
    assert not [p for p in files if re.search(r"import.*tracking.*upload|from harness.tracking.upload", p.read_text())]
