"""The documents of an lm-eval task: built once, in a process of their own, kept and hashed in the
results folder.

lm-eval's synthetic tasks draw from the global generators, print to stdout, keep state between
calls, build 500 samples whatever is asked for, and some try for ever where the length is too small.
None of that reaches the runner: a child process builds what is wanted under a fixed seed and leaves
files, and every cell reads the same files.
"""

import hashlib
import inspect
import multiprocessing.util
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from harness.common.errors import UserError
from harness.common.files import short_hash
from harness.common.signals import StopRequest
from harness.tasks.base import Prepared
from harness.tasks.kept import keep
from harness.tasks.lmeval.catalogue import Leaf, users_code

VERSION = 3  # of the way documents are kept: part of what a folder's name is hashed from
SOCKET = 107  # bytes of a socket's name, at most
STUCK = 3  # the child's exit code where lm-eval tries without end
TRIES = 200  # equal calls in a row that tell so


@dataclass(frozen=True)
class Request:
    """What the documents depend on. samples bounds RULER's alone: it makes its documents, others
    are read whole. content: of documents that may be edited here, the `fingerprint` that they must
    have."""

    leaf: Leaf
    context: int
    data_seed: int
    tokenizer: str  # hash or name: what its documents are made for
    samples: int | None
    metadata: dict
    num_fewshot: int | None
    content: str | None = None

    @property
    def recipe(self) -> dict:
        recipe = {"version": VERSION, **self.leaf.identity, "metadata": self.metadata, "num_fewshot": self.num_fewshot}
        if self.leaf.makes_documents:
            made = ("context", "data_seed", "tokenizer", *(["samples"] * self.leaf.ruler))
            recipe |= {name: getattr(self, name) for name in made}
        return recipe | ({"content": self.content} if self.content else {})


@dataclass(frozen=True)
class Built:
    """What a child process has built: how many documents, their hash, and a hash of all that it
    read."""

    count: int
    sha256: str
    fingerprint: str


def documents(request: Request, folder: Path, tokenizer) -> Prepared:
    """The request's documents, built if they are not there.

    Raises NotImplementedError where a task cannot be made at this length, UserError where data or a
    package is missing.
    """

    def make(draft: Path) -> Prepared:
        built = _in_child(request, tokenizer, draft)
        if request.content not in (None, built.fingerprint):
            raise UserError(
                f"The data or the code of task={request.leaf.name} changed while this run began: run it again."
            )
        return Prepared(draft, built.count, built.sha256)

    return keep(folder, request.leaf.name, request.recipe, make)


def fingerprint(request: Request, tokenizer) -> str:
    """sha256 over the documents as they are built now, the other splits that examples come from,
    and the modules that building them imported. Raises as `documents` does."""
    return _in_child(request, tokenizer, None).fingerprint


def _in_child(request: Request, tokenizer, draft: Path | None) -> Built:
    """Build the documents in a process of their own, and keep them in `draft`."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(f"{scratch}/tokenizer")
        return _answer_of(request, draft, Path(scratch))


def _answer_of(request: Request, draft: Path | None, scratch: Path) -> Built:
    name = request.leaf.name
    _refuse_a_long_path_of_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "harness.tasks.lmeval.preload"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_build, args=(request, draft, scratch, os.getcwd(), send), daemon=True)
    # a signal to all processes of the job is the runner's to answer: the server and its children
    # ignore it
    before = {number: signal.signal(number, signal.SIG_IGN) for number in StopRequest.SIGNALS}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    child.start()
    send.close()
    try:
        kind, message = receive.recv()
    except EOFError:
        child.join()
        if child.exitcode != STUCK:
            raise RuntimeError(f"Preparing the documents of {name} ended with code {child.exitcode}.") from None
        kind, message = "ValueError", "lm-eval finds no sample that fits"
    child.join()
    if kind is None:
        return message
    if kind == "ValueError" and request.leaf.ruler:
        raise NotImplementedError(
            f"task={name} cannot be made at context={request.context} with this tokenizer: choose a larger context "
            f"({message})."
        )
    if kind in ("ImportError", "ModuleNotFoundError"):
        raise UserError(f"task={name} needs a package that is not installed: {message}.")
    if request.leaf.reads_locally:
        raise UserError(
            f"The data of task={name} cannot be read ({kind}: {message}). A file that is named without its folder is "
            "looked for where the run is started."
        )
    raise UserError(
        f"The data of task={name} cannot be had here ({kind}: {message}). Where there is a network, prepare it with "
        f"python -m harness.data and the same options, and copy {draft.parent if draft else 'it'} to this machine."
    )


def _refuse_a_long_path_of_sockets() -> None:
    """UserError if the server that forks the child has no room for its socket's name, which Linux
    limits."""
    folder = multiprocessing.util.get_temp_dir()
    if len(os.fsencode(os.path.join(folder, "listener-12345678"))) > SOCKET:
        raise UserError(
            f"The folder for temporary files, {tempfile.gettempdir()}, has too long a name for a socket: set TMPDIR to "
            "one of at most 70 letters, for example TMPDIR=/tmp."
        )


def _build(request: Request, draft: Path | None, scratch: Path, cwd: str, send) -> None:
    """The child: build the task as lm-eval does, and save the splits that evaluation reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # lm-eval prints a line for each try
    try:
        os.chdir(cwd)
        known = set(sys.modules)
        documents, splits, evaluated = _splits(request, scratch)
        if draft:
            draft.mkdir(parents=True)
            for split, data in splits.items():
                data.save_to_disk(str(draft / split))
        made = Prepared.of(scratch, documents)
        imported = [module for name, module in list(sys.modules.items()) if name not in known]
        code = {file for module in imported if (file := users_code(module)) is not None}
        read = [Prepared.of(scratch, data).sha256 for split, data in sorted(splits.items()) if split != evaluated]
        read += sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in code)
        send.send((None, Built(made.count, made.sha256, short_hash([made.sha256, read]))))
    except Exception as error:
        words = " ".join(str(error).split())
        send.send((type(error).__name__, words[:400]))


def build_task(config: dict):
    """lm-eval's task object of a configuration: its own class, or the one that the configuration
    names."""
    from lm_eval.api.task import ConfigurableTask

    kind = config.get("class") or ConfigurableTask
    task = kind(config=config) if "config" in inspect.signature(kind.__init__).parameters else kind()
    task.config.task = config["task"]
    return task


def _splits(request: Request, scratch: Path) -> tuple[Iterable[dict], dict[str, Any], str | None]:
    """The documents that are evaluated, data sets by split, and the split that is evaluated. For
    data_seed=0 the seeds are those of lm-eval's own command line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()  # it knows a function by its code, and not by what that calls
    if request.leaf.reads_locally:
        datasets.config.HF_DATASETS_CACHE = scratch / "datasets"  # it knows a file by its date
    config = task_config(request, {"tokenizer": str(scratch / "tokenizer")})
    if request.leaf.ruler:
        _bound(request.samples)
    random.seed(request.data_seed)
    np.random.seed(1234 + request.data_seed)
    task = build_task(config)
    evaluated = task.config.test_split or task.config.validation_split
    if request.leaf.ruler and not all(document["outputs"] for document in task.dataset[evaluated]):
        raise ValueError("its prompts would ask for nothing")  # lm-eval goes on where no word fits
    alone = evaluated and not task.config.num_fewshot  # a Python class says in code what it reads
    kept = [evaluated] if alone else list(task.dataset)
    return task.eval_docs, {split: task.dataset[split] for split in kept}, evaluated


def task_config(request: Request, metadata: dict) -> dict:
    """The leaf's configuration as lm-eval's constructor takes it, with the metadata that documents
    are made from."""
    config = request.leaf.config(functions=True)
    own = config.get("metadata")
    lengths = {"max_seq_lengths": [request.context]} if request.leaf.ruler else {}
    config["metadata"] = {**(own if isinstance(own, dict) else {}), **lengths, **request.metadata, **metadata}
    if request.num_fewshot is not None:
        config["num_fewshot"] = request.num_fewshot
    return config


def _bound(samples: int | None) -> None:
    """Make RULER's builders stop after `samples` documents, and end this process where they try
    without end.

    The builders loop over `tqdm(range(500))` and draw sample after sample, so that the first
    documents do not depend on how many follow. Where nothing fits, some of them catch every
    exception and try again: only the end of the process ends that.
    """
    tries = _Tries()

    def progress(numbers: range, **_) -> Iterator[int]:
        for number in numbers[:samples]:
            tries.forget()
            yield number

    module: Any
    for name, module in list(sys.modules.items()):
        if name.startswith("lm_eval.tasks.ruler.") and hasattr(module, "tqdm"):
            module.tqdm = progress
            if hasattr(module, "generate_input_output"):
                module.generate_input_output = tries.watched(module.generate_input_output)
            if hasattr(module, "get_tokenizer"):
                module.get_tokenizer = lambda *given, make=module.get_tokenizer, **named: tries.watched(
                    make(*given, **named)
                )


class _Tries:
    """Counts equal calls in a row, of each function, since the last finished sample."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self.last: dict[Callable, tuple] = {}
        self.count: dict[Callable, int] = {}

    def watched(self, function: Callable) -> Callable:
        def call(*given, **named):
            same = self.last.get(function) == (given, named)
            self.last[function], self.count[function] = (given, named), self.count.get(function, 0) + 1 if same else 1
            if self.count[function] > TRIES:
                os._exit(STUCK)
            return function(*given, **named)

        return call
