"""Processes that are cheap to start: a server that has imported the harness and read its words
forks itself for each.

What it forks runs `harness.run`, or another command of the harness, as its command line does, in a
session of its own, and ends with its exit code. A hook of tests.faults.hooks may act within it.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Running:
    """A process that a zygote has forked; as much of subprocess.Popen as tests use."""

    def __init__(self, connection: socket.socket, out: Path, err: Path):
        self._lines = connection.makefile("r")
        self._connection, self._out, self._err = connection, out, err
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    @property
    def err(self) -> str:
        """What it has printed on stderr so far."""
        return self._err.read_text() if self._err.exists() else ""

    def poll(self) -> int | None:
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self._end(timeout) is None:
            raise subprocess.TimeoutExpired("harness.run", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; all that it printed on stdout and stderr."""
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def listens(self) -> bool:
        """Whether it has put its handlers of signals in place, or has ended."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return True
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGUSR1 - 1) & 1) or self.poll() is not None

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode


class Zygote:
    """In a `with` block: start(["masks=4", ...]) forks a process that runs harness.run with these
    arguments. modules: what it imports beside the harness's own run."""

    def __init__(self, *modules: str):
        self._modules = modules

    def __enter__(self) -> "Zygote":
        self._folder = tempfile.TemporaryDirectory(prefix="zygote-")
        self.place = Path(self._folder.name) / "socket"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", str(self.place), *self._modules], cwd=ROOT, stdin=subprocess.PIPE
        )
        while not self.place.exists():
            assert self._process.poll() is None, "the zygote did not start"
            time.sleep(0.05)
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def start(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        hook: Mapping | None = None,
        program: str = "harness.run",
    ) -> Running:
        """hook: what tests.faults.hooks.install gets. env: all of the process's environment (this
        process's). program: the module whose `main` is called."""
        return fork(self.place, arguments, env=env, hook=hook, program=program)


def fork(
    place: Path,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    hook: Mapping | None = None,
    program: str = "harness.run",
) -> Running:
    """See Zygote.start; from any process that knows the zygote's place."""
    name = uuid.uuid4().hex
    out, err = place.with_name(f"{name}.out"), place.with_name(f"{name}.err")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(place))
    request = {"arguments": list(arguments), "env": dict(os.environ if env is None else env), "hook": hook}
    request |= {"out": str(out), "err": str(err), "program": program}
    connection.sendall(json.dumps(request).encode() + b"\n")
    return Running(connection, out, err)


def serve(place: str, *modules: str) -> None:
    """Fork for each connection, until stdin is closed."""
    # what each run would import anew
    import transformers.generation.utils
    import transformers.models.mpt.modeling_mpt  # noqa: F401

    import harness.experiment.execute
    import harness.models.families
    import harness.run
    import harness.tasks.retrieval.task
    import harness.tracking.mirror  # noqa: F401
    from harness.tasks.retrieval.needles import word_lists
    from tests.faults.places import writing

    word_lists()
    writing()
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{place}.new")
        listening.listen(64)
        os.rename(f"{place}.new", place)
        while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
            if listening in ready:
                connection, _ = listening.accept()
                if os.fork() == 0:
                    listening.close()
                    _keep(connection)
                    os._exit(0)
                connection.close()


def _keep(connection: socket.socket) -> None:
    """Fork the process that is asked for, tell its id, and its exit code when it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        _work(request)
    with contextlib.suppress(OSError):  # nobody may be there any more who wants to know
        connection.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{code}\n".encode())


def _work(request: dict) -> None:
    """Be the process that was asked for. Does not return."""
    import traceback

    from tests.faults.hooks import install

    os.setsid()
    for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["program"], *request["arguments"]]
    code, ended = 1, None
    try:
        program = importlib.import_module(request["program"])
        if request["hook"]:
            ended = install(**request["hook"])
        code = program.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if ended:
            ended()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(*sys.argv[1:])
