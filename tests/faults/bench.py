"""One fault after another: break a run, put right what broke it, run the same command to its end,
compare."""

import contextlib
import functools
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.stores import Harm, counted, harm, on_disk
from tests.zygote import Running, Zygote

COMMON = ("kernel=sdpa", "dtype=float32", "device=cpu", "batch=2")
RUNS = (
    ("attn=plsh", "masks=2", "draws=2", "context=96", "samples=8", "references=none"),
    ("attn=plsh", "masks=4", "draws=4", "context=128", "samples=10", "attn.weights=rb", "references=none"),
    ("attn=alibi", "context=112", "samples=9", "references=none", "model=tiny-plain", "lease=2"),
    ("attn=window", "masks=4", "context=96", "samples=8", "references=none", "attn.match=fused"),
    ("attn=plsh", "masks=2", "draws=2", "context=96", "samples=3", "references=compute"),
)
DOCUMENTS = ("task=ruler", "task.ruler.names=[niah_single_1]", "context=320", "samples=3", "masks=2", "draws=2")
PROGRAMS = ("harness.collect", "harness.report.__main__", "harness.report.page", "harness.sweep.__main__")
TRIES = 40  # to hit a run before it ends


@dataclass
class Undisturbed:
    """A run that nothing happened to: its arguments, its folder and what that store holds, seconds
    from its handlers of signals to its end, lines of the writing code, pages and files on disk."""

    arguments: tuple[str, ...]
    results: Path
    store: Mapping
    seconds: float
    lines: int
    pages: int
    files: int


@dataclass
class Case:
    """One run to be broken. extra: arguments more. program, arguments: another command to be broken
    instead. heal: calls that put the machine right before the run is repeated. hook: of the
    repeated run. beside: what the fault did outside the store, to the runs of W&B for example."""

    zygote: Zygote
    lines_of: Callable[[Path], int]
    run: Undisturbed
    results: Path
    env: dict[str, str]
    extra: tuple[str, ...] = ()
    heal: list[Callable[[], None]] = field(default_factory=list)
    clean: list[Callable[[], None]] = field(default_factory=list)
    hook: dict | None = None
    beside: Callable[[], Harm] = Harm
    program: str = "harness.run"
    arguments: tuple[str, ...] | None = None
    out: str = ""  # what the last process printed on stdout
    said: list[str] = field(default_factory=list)
    started: list[Running] = field(default_factory=list)

    def start(self, hook: Mapping | None = None) -> Running:
        arguments = self.arguments or [*self.run.arguments, *self.extra, f"results={self.results}"]
        self.started.append(self.zygote.start(arguments, env=self.env, hook=hook, program=self.program))
        return self.started[-1]

    def end(self, process: Running) -> int:
        """Wait for it; its exit code. What it printed is kept."""
        self.out, err = process.communicate(timeout=120)
        self.said.append(self.out[-300:] + err)
        return process.returncode

    @property
    def complete(self) -> bool:
        """Whether all tasks of the run are finished."""
        found = counted(self.results)
        return all(task in found and found[task][2] == "ok" for task in self.run.store)


@dataclass(frozen=True)
class Kind:
    """inject: break the run of a case; its exit codes, or None if the run ended before the fault
    could hit. promised: what these exit codes may be: called with the codes and whether the store
    is complete."""

    name: str
    share: int  # of 1,000
    inject: Callable[[Case, random.Random], list[int] | None]
    promised: Callable[[list[int], bool], bool]
    needs_root: bool = False
    documents: bool = False  # the run to be broken is that of an lm-eval task


@dataclass
class Tally:
    """Of one kind of fault."""

    kind: str
    injected: int = 0
    harm: Harm = field(default_factory=Harm)
    codes: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    late: int = 0  # that came too late, and were replaced
    broken: list[str] = field(default_factory=list)  # promises: exit codes, tracebacks, harm

    def add(self, harm: Harm, codes: Sequence[int | str], broken: list[str]) -> None:
        self.injected += 1
        self.harm += harm
        self.codes.update(str(code) for code in codes)
        self.broken += broken

    def as_dict(self) -> dict:
        about = {"kind": self.kind, "injected": self.injected, **asdict(self.harm)}
        about |= {"exit_codes": dict(sorted(self.codes.items())), "seconds": round(self.seconds, 1)}
        return {**about, "came_too_late": self.late, "broken_promises": self.broken}


class Bench:
    """In a `with` block: a zygote, undisturbed runs, and a folder for what is to be broken."""

    def __init__(self, seed: int):
        self.seed = seed

    def __enter__(self) -> "Bench":
        self._stack = contextlib.ExitStack()
        self.zygote = self._stack.enter_context(Zygote(*PROGRAMS))
        # a run that is still being stopped may write while the folder goes
        folder = tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)
        self.folder = Path(self._stack.enter_context(folder))
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        self.env |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.reached: set[str] = set()  # functions of the writing code, by runs and commands that nothing happened to
        self.runs = [self._undisturbed(i, (*COMMON, *arguments)) for i, arguments in enumerate(RUNS)]
        return self

    @functools.cached_property
    def documents(self) -> Undisturbed:
        """The run of an lm-eval task, which makes its documents first."""
        return self._undisturbed(len(RUNS), (*COMMON, *DOCUMENTS, "references=none"))

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def _undisturbed(self, number: int, arguments: tuple[str, ...]) -> Undisturbed:
        results, lines = self.folder / f"undisturbed-{number}", self.folder / f"lines-{number}"
        process = self.zygote.start([*arguments, f"results={results}"], env=self.env, hook={"count": str(lines)})
        while not process.listens():
            time.sleep(0.001)
        began = time.monotonic()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        seconds = time.monotonic() - began
        found = [p for p in results.rglob("*")]
        pages = sum(-(-p.stat().st_size // 4096) for p in found if p.is_file())
        return Undisturbed(arguments, results, counted(results), seconds, self.lines_of(lines), pages, len(found))

    def lines_of(self, file: Path) -> int:
        """What a hook has counted."""
        counts = json.loads(file.read_text())
        self.reached |= set(counts["reached"])
        return counts["lines"]

    @contextlib.contextmanager
    def _case(self, kind: Kind, rng: random.Random) -> Iterator[Case]:
        """One of the runs. Nothing of it is left in the end: no process, mount, server or file."""
        results = Path(tempfile.mkdtemp(dir=self.folder))
        run = self.documents if kind.documents else rng.choice(self.runs)
        case = Case(self.zygote, self.lines_of, run, results, dict(self.env))
        try:
            yield case
        finally:
            for process in case.started:
                process.kill()
            for call in case.clean:
                call()
            shutil.rmtree(results, ignore_errors=True)

    def inject(self, kind: Kind, number: int, tally: Tally) -> None:
        """One fault of a kind into a run, and what came of it. Whatever is raised there, a run that
        never ends for example, is a broken promise of this fault and does not cost the others."""
        began = time.monotonic()
        for attempt in range(TRIES):
            rng = random.Random(f"{self.seed} {kind.name} {number} {attempt}")
            try:
                with self._case(kind, rng) as case:
                    if (codes := kind.inject(case, rng)) is not None:
                        tally.add(*self._judged(kind, case, codes, f"{number}.{attempt}"))
                        break
                    tally.late += 1
            except Exception as error:
                tally.broken.append(f"{number}.{attempt}: {error!r}")
                break
        else:
            tally.broken.append(f"fault {number} never hit")
        tally.seconds += time.monotonic() - began

    def _judged(self, kind: Kind, case: Case, codes: list[int], name: str) -> tuple[Harm, list[int], list[str]]:
        for call in case.heal:
            call()
        broken = [] if kind.promised(codes, case.complete) else [f"exit codes {codes}"]
        safe = on_disk(case.results)
        again = case.end(case.start(case.hook))
        if again != 0:
            broken.append(f"exit code {again} when run again")
        if any("Traceback (most recent call last)" in said for said in case.said):
            broken.append("a traceback")
        found = harm(case.results, case.run.store, safe) + case.beside()
        if found.lost or found.doubled or found.changed:
            broken.append(str(found))
        told = " | ".join(said[-2000:] for said in case.said)
        return found, codes, [f"{name}, {' '.join(case.run.arguments)}: {', '.join(broken)}: {told}"] if broken else []


def mount(case: Case, options: str) -> None:
    """A small file system in memory as the results folder of a case."""
    system("mount", "-t", "tmpfs", "-o", options, "faults", str(case.results))
    case.clean.append(lambda: system("umount", "--lazy", str(case.results)))


def remount(case: Case, options: str) -> None:
    system("mount", "-o", f"remount,{options}", str(case.results))


def system(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
