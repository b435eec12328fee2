"""No output channel decides what becomes of a command: not a reader that leaves, not a full disk, not
an ASCII terminal."""

import json
import os
import subprocess
import sys

import pytest

from tests.commands.test_odd_files import CELL, SWEEP, made, plsh_task, results
from tests.conftest import ROOT

__all__ = ["made", "results"]  # fixtures

# Forks a process for each command, with stdout or stderr as asked, and tells the exit codes.
PROGRAM = """
import importlib, json, os, sys
import harness.collect, harness.show, harness.check, harness.sync, harness.sweep.__main__, harness.report.__main__
import harness.run, harness.experiment.execute, harness.data, harness.pareto.__main__
codes = []
for program, arguments, channel, kind in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        if kind == "gone":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open("/dev/full", os.O_WRONLY)
        other = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(writer, channel)
        os.dup2(other, 3 - channel)
        sys.argv = [program, *arguments]
        try:
            sys.exit(importlib.import_module(program).main())
        except SystemExit as end:
            try:
                sys.stdout.flush(), sys.stderr.flush()
            except OSError:
                os._exit(120)  # as Python does when it closes
            os._exit(end.code or 0)
        except BaseException:
            os._exit(99)
    codes.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open(sys.argv[2]).read()])
print(json.dumps(codes))
"""


def call(tmp_path, todo):
    """The exit code of each command, and what went to the channel that was whole."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(todo), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_every_command_ends_as_it_would(results, tmp_path):
    (tmp_path / "s.yaml").write_text(SWEEP)
    store, cell = str(results), plsh_task(results).parent.name
    commands = [
        ("harness.show", ["--results", store], 0),
        ("harness.show", [cell, "--results", store], 0),
        ("harness.collect", [store, "--out", str(tmp_path / "o.csv")], 0),
        ("harness.collect", [store, "--out", "x.xlsx"], 2),
        ("harness.check", [store], 0),
        ("harness.report.__main__", [store, "--out", str(tmp_path / "page")], 0),
        ("harness.report.__main__", [store, "--markdown"], 0),
        ("harness.pareto.__main__", [store, "--plan"], 0),
        ("harness.pareto.__main__", [str(tmp_path / "absent")], 2),
        ("harness.sweep.__main__", [str(tmp_path / "s.yaml"), "masks=8", "--results", store, "--missing"], 0),
        ("harness.sweep.__main__", [str(tmp_path / "s.yaml"), "--results", store, "--status"], 0),
        ("harness.sync", [str(tmp_path / "absent")], 2),
        ("harness.run", ["masks=x"], 2),
    ]
    channels = [(1, "gone"), (2, "full")]
    todo = [[p, a, channel, kind] for p, a, _ in commands for channel, kind in channels]
    runs = [
        ["harness.run", [*CELL, f"results={tmp_path / f'{kind}{channel}'}"], channel, kind]
        for channel, kind in ((2, "gone"), (1, "full"))
    ]
    ended = call(tmp_path, [*todo, *runs])
    assert [code for code, _ in ended] == [code for _, _, code in commands for _ in channels] + [0, 0]
    for _, _, channel, kind in runs:  # all was computed and recorded, whoever heard of it
        (record,) = (tmp_path / f"{kind}{channel}").glob("*/*/task.json")
        assert json.loads(record.read_text())["samples"] == 4
    assert json.loads(ended[-2][1].splitlines()[-1])["status"] == "ok"
