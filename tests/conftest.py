"""Shared fixtures. Models are small and random, or the embedded ones; nothing is fetched from a
network."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "disabled"  # tests/tracking turns it on where it is the subject
# barriers between threads cost a scheduler's time slice each where other work runs on the same
# cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files of tests that mostly wait: for a scheduler, for processes that are killed or time out, for a
# browser. They start first, so that other files fill the cores meanwhile and none of them is left
# alone at the end.
WAITING = (
    "slurm/test_sweep.py",
    "results/test_store.py",
    "tasks/lmeval/test_traps.py",
    "commands/test_interruption.py",
    "tracking/test_outage.py",
    "report/test_browser.py",
    "commands/test_quickstart.py",
    "sweep/test_prepare.py",
    "fuzz/test_fuzz.py",
)

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "harness" / "embedded"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files in WAITING first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(WAITING)}
    assert all(file.exists() for file in places), "WAITING names a file that is gone"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A random MPT of 8 heads and 2 layers with the embedded tokenizer, as a folder of transformers
    files."""
    from transformers import AutoTokenizer

    from tests.models.random_models import save

    folder = tmp_path_factory.mktemp("checkpoint")
    AutoTokenizer.from_pretrained(EMBEDDED / "tiny").save_pretrained(folder)
    return save(folder, vocab_size=len(AutoTokenizer.from_pretrained(folder)))


@pytest.fixture(autouse=True)
def lm_eval_logs_as_before():
    """lm-eval's own command adds a handler to its logger, whose stream ends with the test."""
    logger = logging.getLogger("lm_eval")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: run("masks=4", ...) -> (exit code, last JSON line,
    stdout, stderr)."""
    from harness.run import main

    def call(*arguments: str) -> tuple[int, dict, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness.run", *arguments])
        code = main()
        out, err = capsys.readouterr()
        return code, json.loads(out.strip().splitlines()[-1]), out, err

    return call


@pytest.fixture(scope="session")
def zygote():
    """Forks processes that have imported the harness."""
    from tests.zygote import Zygote

    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def start(zygote):
    """Start the command line in a process of its own: start("masks=4", ...) -> Running, with the
    methods of Popen. Killed at the end of the test."""
    running = []

    def call(*arguments: str):
        running.append(zygote.start(arguments))
        return running[-1]

    yield call
    for process in running:
        process.kill()
