"""Where git does not tell the commit, a record says why, and a hash of the source files stands in its
place."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from harness.common.paths import ROOT
from kernels.common import facts

FACTS = """
import json, torch
from harness.common import environment
device = torch.device("cpu")
print(json.dumps([environment.describe(device), environment.machine(device)]))
"""


def refusing(tmp_path) -> dict:
    """The environment of a user who does not own the clone."""
    plain = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return {**os.environ, **plain}


def without_git(tmp_path) -> dict:
    return {**os.environ, "PATH": str(tmp_path)}


needs_clone = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="this is no clone, or there is no git"
)


@needs_clone
@pytest.mark.parametrize(("made", "why"), [(refusing, "dubious ownership"), (without_git, "git does not run")])
def test_a_git_that_does_not_answer(tmp_path, made, why):
    command = [sys.executable, "-c", FACTS]
    done = subprocess.run(command, env=made(tmp_path), capture_output=True, text=True, check=True)
    about, machine = json.loads(done.stdout)
    assert about["commit"] is None and about["dirty"] is None
    assert why in about["no_commit"] and why in done.stderr
    assert machine["commit"] == f"source:{about['source']}" == f"source:{by_hand()}"


def by_hand() -> str:
    """As sha256sum would: over a line for each file, its name and its hash."""
    names = [
        name
        for pattern in ("*.py", "*.yaml")
        for top in ("harness", "kernels", "conf")
        for name in (ROOT / top).rglob(pattern)
    ]
    lines = [f"{n.relative_to(ROOT).as_posix()} {hashlib.sha256(n.read_bytes()).hexdigest()}\n" for n in names]
    lines.sort(key=lambda line: (ROOT / line.split(" ")[0]).parts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@needs_clone
def test_a_git_that_answers():
    about = json.loads(
        subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True, check=True).stdout
    )[0]
    expected = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert about["commit"] == expected.strip()
    assert not {"no_commit", "source"} & set(about)


@needs_clone
def test_a_run_of_a_clone_of_another_owner(zygote, tmp_path):
    words = (
        "attn=alibi",
        "context=160",
        "samples=2",
        "references=none",
        "tracking=disabled",
        f"results={tmp_path / 'r'}",
    )
    running = zygote.start(words, env=refusing(tmp_path))
    out, err = running.communicate(timeout=200)
    assert running.returncode == 0, err
    assert "dubious ownership" in err
    (task,) = tmp_path.glob("r/*/*/task.json")
    environment = json.loads(task.read_text())["environment"]
    assert environment["commit"] is None and "dubious ownership" in environment["no_commit"]
    assert environment["source"] == facts.source_hash()


def test_the_hash_is_of_names_and_contents(monkeypatch, tmp_path):
    def hashed():
        facts.source_hash.cache_clear()
        return facts.source_hash()

    monkeypatch.setattr(facts, "ROOT", tmp_path)
    for folder in ("conf", "harness", "kernels"):
        (tmp_path / folder).mkdir()
    seen = {hashed()}
    (tmp_path / "harness" / "a.py").write_text("1")
    seen.add(hashed())
    (tmp_path / "harness" / "a.py").write_text("2")
    seen.add(hashed())
    (tmp_path / "harness" / "a.py").rename(tmp_path / "harness" / "b.py")
    seen.add(hashed())
    (tmp_path / "conf" / "c.yaml").write_text("2")
    seen.add(hashed())
    assert len(seen) == 5
    (tmp_path / "harness" / "notes.txt").write_text("3")
    assert hashed() in seen
    facts.source_hash.cache_clear()
