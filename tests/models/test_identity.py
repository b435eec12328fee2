"""What a cell's id says of its model: the commit of a branch, every file that is read, and what was
loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.analysis import reader
from harness.common.errors import UserError
from harness.models import hub
from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from tests.conftest import EMBEDDED, ROOT
from tests.models.hub import REPO, Hub

COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture
def folder(tmp_path, checkpoint) -> Path:
    place = tmp_path / "checkpoint"
    place.mkdir()
    for file in checkpoint.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def identity(folder: Path) -> dict:
    return resolve_model(ModelConfig(name="m", path=str(folder)), None).identity


@pytest.mark.parametrize("model", ["tiny", "tiny-plain", "tiny-books"])
def test_the_embedded_models_are_told_by_what_told_them_in_the_first_records(model):
    assert set(identity(EMBEDDED / model)) == {"weights", "config", "slopes", "tokenizer"}


def test_committed_records_are_found_again_by_the_commands_that_made_them(run, tmp_path):
    first = ROOT / "docs" / "results" / "first"
    known = {record.cell_id for record in reader.records(first)}
    code, document, _, err = run("context=1024", "attn=alibi", "samples=1", f"results={tmp_path}", "references=none")
    assert code == 0, err
    assert document["cell_id"] in known, err


@pytest.mark.parametrize("name", ["merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"])
def test_every_file_of_the_tokenizer_is_in_the_identity(folder, name):
    before = identity(folder)
    (folder / name).write_text("{}")
    after = identity(folder)
    assert after["tokenizer_files"] != before.get("tokenizer_files")
    assert after["tokenizer"] == before["tokenizer"]


def test_settings_of_the_tokenizer_count_and_its_paper_trail_does_not(folder):
    file, before = folder / "tokenizer_config.json", identity(folder)
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "transformers_version": "0", "name_or_path": "elsewhere"}))
    assert identity(folder) == before
    file.write_text(json.dumps({**settings, "add_prefix_space": True}))
    assert identity(folder) != before


def test_what_was_loaded_is_recorded(run, tmp_path, folder):
    from hashlib import sha256

    options = ("context=160", "samples=2", "attn=alibi", "references=none", f"results={tmp_path}", "dtype=float32")
    code, document, _, err = run("model=local", f"model.path={folder}", *options)
    assert code == 0, err
    (record,) = reader.records(tmp_path)
    file = (folder / "model.safetensors").read_bytes()
    tensors = load_file(folder / "model.safetensors")
    assert record.environment.weights == {
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "sha256": "sha256:" + sha256(sha256(file).digest()).hexdigest(),
    }


def test_a_file_that_changes_while_a_run_begins_is_seen(folder):
    spec = resolve_model(ModelConfig(name="m", path=str(folder)), None)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "layer_norm_epsilon": 0.5}))
    with pytest.raises(UserError, match="changed while this run began"):
        load_model(spec, device=torch.device("cpu"), kernel="sdpa")


LOOK = """
import json, sys, torch
from harness.models.options import ModelConfig
from harness.models.load import load_model
from harness.models.spec import resolve_model

for revision in sys.argv[2:]:
    spec = resolve_model(ModelConfig(name="m", repo=sys.argv[1], revision=revision), "float32")
    model = load_model(spec, device=torch.device("cpu"), kernel="sdpa").model
    print(json.dumps([spec.identity["weights"], spec.revision, float(model.get_input_embeddings().weight.sum())]))
"""


def test_a_branch_is_the_commit_that_it_stands_for(tmp_path, folder):
    """The branch moves between two runs; in the working directory lies a folder of the repository's
    name."""
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "config.json").write_text("{}")
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    del env["HF_HUB_OFFLINE"]

    def look(*revisions: str, **settings: str) -> list[list]:
        command = [sys.executable, "-c", LOOK, REPO, *revisions]
        done = subprocess.run(command, cwd=tmp_path, env=env | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()[-len(revisions) :]]

    weights = load_file(folder / "model.safetensors")
    sums = []
    with Hub(folder) as server:
        for commit in COMMITS:
            server.commit = commit
            (found,) = look("main", HF_ENDPOINT=server.url)
            assert found[:2] == [f"{REPO}@{commit}", commit]
            sums.append(found[2])
            changed = {name: tensor * 2 for name, tensor in weights.items()}
            save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    assert sums[0] == pytest.approx(float(weights["transformer.wte.weight"].sum()), rel=1e-5)
    assert sums[1] == pytest.approx(2 * sums[0], rel=1e-5)
    # without a network the cache says which commit the branch was, and an older commit is still to
    # be had
    newer, older = look("main", COMMITS[0], HF_HUB_OFFLINE="1")
    assert newer[1:] == [COMMITS[1], sums[1]]
    assert older[1:] == [COMMITS[0], sums[0]]


def test_what_is_no_commit_is_never_loaded():
    with pytest.raises(UserError, match="neither on the Hub nor in its cache"):
        hub.fetch("owner/model", "main", weights=True)
