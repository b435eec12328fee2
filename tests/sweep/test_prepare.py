"""What `--prepare` has fetched and made is all that the rows need: they run where there is no
network."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from harness import data
from harness.sweep.__main__ import main
from harness.tasks.lmeval import documents
from tests.conftest import ROOT
from tests.models.hub import REPO, Hub

FIXED = {"samples": 8, "draws": 4, "references": "none", "kernel": "sdpa", "dtype": "float32"}


def sweep(folder, **axes) -> str:
    """Write a sweep file with FIXED and these axes: its path."""
    parameters = {name: {"value": value} for name, value in FIXED.items()}
    parameters |= {name: {"values": values} for name, values in axes.items()}
    content = {"program": "harness/run.py", "method": "grid", "parameters": parameters}
    (folder / "s.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "s.yaml")


def prepare(file: str, results, capsys) -> tuple[int, dict]:
    code = main([file, "--prepare", "--results", str(results)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_each_distinct_piece_is_made_once_and_read_by_the_runs(run, tmp_path, capsys, monkeypatch):
    tasks = ["[retrieval,ruler,throughput]"]
    axes = {"attn": ["alibi", "plsh"], "context": [256, 300], "samples": [8, 12], "masks": [2, 4], "task": tasks}
    axes |= {"model": ["tiny", "tiny-plain"], "task.ruler.names": ["[ruler_fwe]"]}  # the two share a tokenizer
    code, document = prepare(sweep(tmp_path, **axes), tmp_path / "results", capsys)
    assert code == 0
    assert {row["status"] for row in document["data"]} == {"ok"}
    asked = sorted((row["what"], row["context"], row["samples"]) for row in document["data"])
    assert asked == [(w, c, s) for w in ("retrieval", "ruler_fwe") for c in (256, 300) for s in (8, 12)]
    made = {str(place) for place in (tmp_path / "results" / "data").iterdir()}
    assert made == {row["place"] for row in document["data"]}
    assert len(made) == 8
    monkeypatch.setattr(documents, "_build_in_child", None)  # nothing is made any more
    monkeypatch.setattr("harness.tasks.retrieval.prompts.make_samples", None)
    fixed = [f"{name}={value}" for name, value in FIXED.items() if name != "samples"]
    options = ["task=[retrieval,ruler]", "task.ruler.names=[ruler_fwe]", "model=tiny-plain", "context=300"]
    code, document, _, err = run(*fixed, *options, "samples=12", "masks=2", f"results={tmp_path / 'results'}")
    assert code == 0 and document["tasks"] == {"retrieval": "ok", "ruler_fwe": "ok"}, err


def test_a_sweep_of_a_model_on_the_hub_runs_without_a_network_after_one_command(checkpoint, tmp_path):
    for name, content in (("pytorch_model.bin", b"pickled"), ("onnx/model.safetensors", b"another library's")):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(content)
    for file in checkpoint.iterdir():
        (tmp_path / "hub" / file.name).write_bytes(file.read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    shape = {"family": "mpt", "layers": config["n_layers"], "heads": config["n_heads"], "width": config["d_model"]}
    shape |= {"vocabulary": config["vocab_size"]}
    axes = {"model": ["mpt-7b"], "model.repo": [REPO], "model.revision": ["main"], "context": [160]}
    axes |= {f"model.architecture.{name}": [value] for name, value in shape.items()}
    file = sweep(tmp_path, **axes, attn=["plsh"])
    command = [sys.executable, "-m", "harness.sweep", file, "--results", str(tmp_path / "results")]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

    def call(*more, **settings):
        return subprocess.run([*command, *more], cwd=ROOT, env=env | settings, capture_output=True, text=True)

    with Hub(tmp_path / "hub") as hub:
        network = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        done = call("--prepare", **network)
        asked = list(hub.asked)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["data"]
    assert [row["what"] for row in found] == ["model", "retrieval"]
    assert "model.safetensors" in asked
    assert not {"pytorch_model.bin", "onnx/model.safetensors"} & set(asked)
    done = call(HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["done"] == 1


def test_what_cannot_be_had_is_said_and_the_rest_is_made(checkpoint, tmp_path, capsys):
    axes = {"model": ["local"], "model.path": [str(checkpoint)]}
    axes |= {"task": ["[ruler,retrieval]"], "context": [256], "task.ruler.names": ["[niah_single_2,ruler_vt]"]}
    code = main([sweep(tmp_path, **axes), "--prepare", "--results", str(tmp_path / "results")])
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert code == 1
    assert document["status"] == "failed"
    assert "python -m harness.data" in err
    found = {row["what"]: row["status"] for row in document["data"]}
    assert found == {"niah_single_2": "error", "ruler_vt": "unsupported", "retrieval": "ok"}


@pytest.mark.parametrize("broken", [{"masks": [0]}, {"attn": ["plhs"]}])
def test_a_mistake_is_said_before_anything_is_made(tmp_path, capsys, broken):
    code, document = prepare(sweep(tmp_path, context=[256], **broken), tmp_path / "results", capsys)
    assert code == 2
    assert document["status"] == "invalid"
    assert not (tmp_path / "results").exists()


def test_data_for_another_machine_is_not_held_to_this_ones_memory_and_devices(tmp_path, capsys):
    options = ["context=60000", "kernel=exact", "device=cuda:7", "task=throughput", f"results={tmp_path}"]
    assert data.main(options) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"status": "ok", "data": []}
