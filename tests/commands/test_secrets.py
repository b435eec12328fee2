"""Twenty keys at twenty places: none of them is in a file of the store, in W&B's folder, on stdout or
on stderr."""

import json
import os
import subprocess
import sys

import pytest

from harness.common.secrets import is_secret_name, learn, without_secrets, without_secrets_in
from harness.results.store import Part

FAST = ("attn=alibi", "context=160", "samples=2", "references=none")
HEX = "a94f0c1d2b3e4f5061728394a5b6c7d8e9f00112"  # of a commit, or a W&B key
# variables of the environment
VARIABLES = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "MODEL_LABEL": "planted-plain-name-1",  # named like a setting, and interpolated
    "TAG_LABEL": "planted-plain-name-2",
    "GROUP_LABEL": "planted-plain-name-3",
    "DEVICE_LABEL": "planted-plain-name-4",
    "DB_PASS": "pw8chars",
    "ODD_KEY": 'it\'s "quoted" key',
    "MY_API_KEY": HEX,
}
# keys that are on the command line themselves
TYPED = {
    "pat": "planted-pat-0005",
    "pass": "pw-9char",
    "github": "ghp_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "fine": "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "openai": "sk-proj-AbCdEfGhIjKlMnOpQrStUvWx",
    "wandb": "wandb_v1_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "hub": "hf_ZyXwVuTsRqPoNmLkJiHgFeDcBa98765432",
    "password": "planted-password-6",
}
RUN = (
    "model.name='${oc.env:MODEL_LABEL} ${oc.env:ODD_KEY}'",
    f"tracking.tags=['${{oc.env:TAG_LABEL}}',{TYPED['aws']},'{TYPED['github']}']",
    "tracking.group='${oc.env:GROUP_LABEL} ${oc.env:DB_PASS} ${oc.env:HF_TOKEN}'",
    f"+hydra.job.env_set.GITHUB_PAT={TYPED['pat']}",
    f"+hydra.job.env_set.SOME_PASS={TYPED['pass']}",
    f"+hydra.job.env_set.PROXY='http://me:{TYPED['password']}@proxy:80'",
    f"+hydra.job.env_set.A={TYPED['openai']}",
    f"+hydra.job.env_set.B={TYPED['wandb']}",
    "+hydra.job.env_set.C=${oc.env:MY_API_KEY}",
)
REFUSED = (
    ("device=${oc.env:DEVICE_LABEL}",),
    ("attn.sampler=${oc.env:DB_PASS}",),
    (f"model.path={TYPED['fine']}",),
    (f"masks={TYPED['hub']}",),
    ("attn=window", f"attn.match={TYPED['openai']}"),
    (f"tracking.project={TYPED['github']}",),
    ("model=local", "model.repo=foo/${oc.env:HF_TOKEN}"),
    ("masks=${oc.env:ODD_KEY}",),
    (f"+hydra.job.env_set.SOME_PASS={TYPED['pass']}", f"dtype={TYPED['pass']}"),
)
PLANTED = {**VARIABLES, **TYPED}


def leaks(folder, *texts):
    """Names of keys, and where they are."""
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found |= {f"text {number}": text.encode() for number, text in enumerate(texts)}
    return [
        (name, where) for name, key in PLANTED.items() for where, content in found.items() if key.encode() in content
    ]


@pytest.fixture
def command(zygote, tmp_path):
    """Run a command in a process of its own that has the variables: (exit code, stdout, stderr)."""

    def call(*words, program="harness.run", **more):
        env = {**os.environ, **VARIABLES, "WANDB_MODE": "offline", **more}
        running = zygote.start(words, env=env, program=program)
        out, err = running.communicate(timeout=200)
        return running.returncode, out, err

    return call


def test_a_run_its_mirror_and_all_readers(command, tmp_path):
    results = tmp_path / "results"
    code, out, err = command(*FAST, *RUN, "tracking=offline", f"results={results}")
    assert code == 0, err
    assert leaks(results, out, err) == []
    assert list(results.glob("wandb/offline-run-*/*.wandb"))  # it was looked into
    (cell,) = results.glob("*/cell.json")
    assert json.loads(cell.read_text())["model"] == "<MODEL_LABEL> <ODD_KEY>"
    (task,) = results.glob("*/*/task.json")
    assert "<AWS key>" in task.read_text() and "env_set.GITHUB_PAT=<GITHUB_PAT>" in task.read_text()
    marker = json.loads((cell.parent / "wandb.json").read_text())
    assert marker["wish"]["tags"][0] == "<TAG_LABEL>"
    for program, words in (
        ("harness.show", [cell.parent.name, "--results", str(results)]),
        ("harness.check", [results]),
    ):
        code, out, err = command(*map(str, words), program=program)
        assert code == 0 and leaks(results, out, err) == []


@pytest.mark.parametrize("words", REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_a_refusal(command, tmp_path, words):
    code, out, err = command(*FAST, *words, f"results={tmp_path / 'results'}")
    assert code == 2 and json.loads(out.splitlines()[-1])["status"] == "invalid", err
    assert "<" in out
    assert leaks(tmp_path, out, err) == []


def test_several_cells(command, tmp_path):
    """Hydra would keep all words of the command line in a file of the results folder."""
    words = ("-m", *FAST, "seed=0,x", f"+hydra.job.env_set.SOME_PASS={TYPED['pass']}", f"results={tmp_path / 'r'}")
    code, out, err = command(*words)
    assert code == 2 and leaks(tmp_path, out, err) == []
    assert not list(tmp_path.rglob("multirun.yaml"))


def test_a_failure_and_its_traceback(run, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise RuntimeError(f"403 of https://me:{TYPED['password']}@host for {VARIABLES['HF_TOKEN']} {HEX}")

    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("harness.experiment.run_plan.load_model", fails)
    code, _, out, err = run(*FAST, "tracking=disabled", f"results={tmp_path}")
    assert code == 1 and list(tmp_path.glob("*/*/attempts/*.json"))
    assert leaks(tmp_path, err) == []


def test_rows(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", VARIABLES["HF_TOKEN"])
    part = Part(tmp_path / "parts" / "a.jsonl")
    part.write([{"key": 0, "prediction": f"x {VARIABLES['HF_TOKEN']} {TYPED['aws']}", "doc_hash": HEX[:16]}])
    part.close()
    row = json.loads(part.path.read_text())
    assert row == {"key": 0, "prediction": "x <HF_TOKEN> <AWS key>", "doc_hash": HEX[:16]}


def test_a_traceback_that_nobody_catches():
    code = "from harness.common.streams import steady_streams\nsteady_streams()\n"
    code += f"print('{TYPED['openai']}')\nraise ValueError('{TYPED['github']}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "<API key>" in done.stdout and "ValueError: <GitHub token>" in done.stderr
    assert TYPED["openai"] not in done.stdout and TYPED["github"] not in done.stderr


KEPT = [
    HEX,
    f"commit {HEX}, dirty",
    "cell f97b1f2e3d4c5b6a and retrieval-4ae691a771b6c5a0",
    "sha256:023f2d00d8a97727d89e20744aabb497a6ed82136545c45a0e08ef0558cdc232",
    "eos_token=<|endoftext|> pad_token=<|endoftext|>",
    "https://example.org/a/b?c=d@e",
    "tokenizer: sha256:00112233445566778899aabbccddeeff00112233",
    "task-0123456789abcdef0123",
    "key=123456789 monkey bearer of news",
]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text
    assert without_secrets_in({"a": [text, 1, None, 0.5]}) == {"a": [text, 1, None, 0.5]}


def test_paths_settings_and_short_values_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("SHORT_TOKEN", "abc1234")
    monkeypatch.setenv("SLURM_JOB_ID", "123456789")
    learn(["tracking.group=${oc.env:SLURM_JOB_ID}", "results=${oc.env:HOME}", "task.x.max_new_tokens=12345678"])
    text = f"{tmp_path} abc1234 123456789 12345678 {os.environ['HOME']}"
    assert without_secrets(text) == text


def test_names():
    for name in (
        "HF_TOKEN",
        "DB_PASS",
        "GITHUB_PAT",
        "MYAPIKEY",
        "aws.secret",
        "SECRET_2",
        "WANDB_API_KEY",
        "pgpassword",
    ):
        assert is_secret_name(name), name
    for name in (
        "PWD",
        "TOKENIZERS_PARALLELISM",
        "PATH",
        "COMPASS",
        "max_new_tokens",
        "eos_token",
        "SLURM_JOB_ID",
        "KEYMAP",
    ):
        assert not is_secret_name(name), name


def test_keys_by_what_stands_before_them():
    assert without_secrets(f"WANDB_API_KEY={HEX}") == "WANDB_API_KEY=<key>"
    assert without_secrets(f"aws_secret_access_key = {'a1/B' * 10}") == "aws_secret_access_key = <AWS secret>"
    assert without_secrets("Authorization: Bearer abcdefghijklmnop.0") == "Authorization: Bearer <bearer token>"
    assert without_secrets("http://u:secret@h:1/") == "http://u:<password>@h:1/"
