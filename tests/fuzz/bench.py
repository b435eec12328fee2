"""Call commands of the harness in this process, and hold what they answer to what is promised: no
traceback, exit codes 0, 1, 2 and 75, a refusal in at most four lines with a JSON line at the end."""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from harness.common.paths import EMBEDDED
from harness.common.streams import say_once

CODES = (0, 1, 2, 75)
LINES = 4  # of a refusal, both streams together
LONGEST = 4000  # characters of a refusal
SECONDS, CPU_SECONDS = 180, 20  # that an answer may take


class _TooLong(BaseException):
    """No Exception, which the command might take for a mistake."""


class Broken(AssertionError):
    """A promise that a command has broken. kind: which."""

    def __init__(self, kind: str, words: Sequence[str], told: str):
        self.kind = kind
        super().__init__(f"{kind}: {' '.join(map(ascii, words))[:500]}: {told[-3000:]}")


def call(program: str, words: Sequence[str], *, stub_run: bool = True) -> tuple[int, str, str]:
    """The exit code of a command and what it printed on stdout and stderr.

    Args:
        program: the module.
        words: its arguments.
        stub_run: let harness.run end once it has planned.

    Raises:
        Broken: if it has broken a promise.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [program, *words]))
        if stub_run:
            stack.enter_context(mock.patch("harness.experiment.run_plan.run_plan", _planned))
            stack.enter_context(mock.patch("harness.experiment.prepare.prepare", _prepared))
            stack.enter_context(mock.patch("harness.sweep.__main__.prepare", _prepared))
            stack.enter_context(mock.patch("harness.sweep.__main__.run_rows", lambda *_, **__: {}))
            stack.enter_context(mock.patch("lm_eval.simple_evaluate", lambda *_, **__: None))
            stack.enter_context(mock.patch.object(sys, "stdin", io.StringIO()))
        return held(lambda: importlib.import_module(program).main(), [program, *words])


def held(command: Callable[[], int], words: Sequence[str]) -> tuple[int, str, str]:
    """What a function that is called as a command is called returns and prints. Raises Broken."""
    say_once.cache_clear()
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        before = {number: signal.signal(number, _give_up) for number in (signal.SIGALRM, signal.SIGPROF)}
        signal.alarm(SECONDS)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            code = command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except _TooLong:
            raise Broken("no answer", words, traceback.format_exc()) from None
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Broken("traceback", words, traceback.format_exc()) from None
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
    told = out.getvalue() + err.getvalue()
    if "Traceback (most recent call last)" in told:
        raise Broken("traceback", words, told)
    if code not in CODES:
        raise Broken(f"exit code {code}", words, told)
    if code == 2:
        _hold_refusal(words, out.getvalue(), err.getvalue())
    return code, out.getvalue(), err.getvalue()


def _hold_refusal(words: Sequence[str], out: str, err: str) -> None:
    try:
        document = json.loads(out.rstrip("\n").split("\n")[-1])
        status = document["status"]
    except (ValueError, TypeError, LookupError):
        raise Broken("no JSON line", words, out + err) from None
    cells = 1 + len(document.get("cells", ()))  # of a multirun: each has its answer, and all have a last line
    if status != "invalid" or "message" not in document and cells == 1:
        raise Broken("no JSON line", words, out + err)
    lines = (out.rstrip("\n") + "\n" + err.strip("\n")).split("\n")
    if len(lines) > LINES * cells or len(out + err) > LONGEST * cells:
        raise Broken("long answer", words, out + err)


def _give_up(*_: object) -> None:
    raise _TooLong(f"{SECONDS} s, or {CPU_SECONDS} s of a processor")


def _planned(plan: object, *_: object) -> tuple[int, dict]:
    print(json.dumps({"status": "ok"}))
    return 0, {}


def _prepared(plans, **_: object) -> int:
    list(plans)
    print(json.dumps({"status": "ok"}))
    return 0


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """In the `with` block: the current folder, with a few things to be named in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made").mkdir()
    (folder / "made" / "file").write_text("The day is long.")
    (folder / "made" / "empty").touch()
    (folder / "made" / "bytes").write_bytes(bytes(range(256)))
    (folder / "made" / "circle").symlink_to("circle")
    shutil.copytree(EMBEDDED / "tiny", folder / "made" / "checkpoint")
    os.mkfifo(folder / "fifo")
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
