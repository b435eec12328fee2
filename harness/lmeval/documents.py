"""The documents of an lm-eval task: built once, in a process of their own, kept and hashed in the results folder.

lm-eval's synthetic tasks draw from the global generators, print to stdout, keep state between calls, build 500 samples
whatever is asked for, and some try for ever where the length is too small. None of that reaches the runner: a child
process builds what is wanted under a fixed seed and leaves files, and every cell reads the same files.
"""

import hashlib
import inspect
import json
import multiprocessing.util
import os
import random
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.lmeval.catalogue import Leaf
from harness.signals import StopRequest
from harness.store import read_json, write_atomic
from harness.tasks.base import Prepared

VERSION = 2  # of the way documents are kept: part of what a folder's name is hashed from
SOCKET = 107  # bytes of a socket's name, at most
STUCK = 3  # the child's exit code where lm-eval tries without end
TRIES = 200  # equal calls in a row that tell so


@dataclass(frozen=True)
class Request:
    """What the documents depend on. samples bounds RULER's alone: it makes its documents, others are read whole."""

    leaf: Leaf
    context: int
    data_seed: int
    tokenizer: str  # hash or name: what its documents are made for
    samples: int | None
    metadata: dict
    num_fewshot: int | None

    @property
    def folder(self) -> str:
        recipe = {"version": VERSION, **self.leaf.identity, "metadata": self.metadata, "num_fewshot": self.num_fewshot}
        if self.leaf.makes_documents:
            made = ("context", "data_seed", "tokenizer", *(["samples"] * self.leaf.ruler))
            recipe |= {name: getattr(self, name) for name in made}
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return f"{self.leaf.name}-{digest[:16]}"


def documents(request: Request, folder: Path, tokenizer) -> Prepared:
    """The request's documents, built if they are not there.

    Raises NotImplementedError where a task cannot be made at this length, UserError where data or a package is missing.
    """
    place = folder / request.folder
    manifest = read_json(place / "manifest.json")
    if manifest is None:
        print(f"Preparing the documents of {request.leaf.name} in {place}", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{place.name}.{uuid.uuid4().hex[:8]}"
        try:
            with tempfile.TemporaryDirectory() as tokens:
                tokenizer.save_pretrained(tokens)
                _in_child(request, draft, tokens)
            _put(draft, place)
        except OSError as error:
            raise UserError(f"The documents of {request.leaf.name} cannot be kept in {place}: {error}.") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        manifest = read_json(place / "manifest.json")
    return Prepared(place, manifest["documents"], manifest["sha256"])


def _put(draft: Path, place: Path) -> None:
    """Rename a whole folder into its place, unless another run was first: its content is the same."""
    try:
        os.rename(draft, place)
    except OSError:
        if (place / "manifest.json").exists():
            return
        shutil.rmtree(place, ignore_errors=True)  # a copy that was cut off
        os.rename(draft, place)


def _in_child(request: Request, draft: Path, tokenizer: str) -> None:
    name = request.leaf.name
    _refuse_a_long_path_of_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "harness.lmeval.preload"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_build, args=(request, draft, tokenizer, send), daemon=True)
    # a signal to all processes of the job is the runner's to answer: the server and its children ignore it
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
        return
    if kind == "ValueError" and request.leaf.ruler:
        raise NotImplementedError(
            f"task={name} cannot be made at context={request.context} with this tokenizer: choose a larger context "
            f"({message})."
        )
    if kind in ("ImportError", "ModuleNotFoundError"):
        raise UserError(f"task={name} needs a package that is not installed: {message}.")
    raise UserError(
        f"The data of task={name} cannot be had here ({kind}: {message}). Where there is a network, prepare it with "
        f"python -m harness.data and the same options, and copy {draft.parent} to this machine."
    )


def _refuse_a_long_path_of_sockets() -> None:
    """UserError if the server that forks the child has no room for its socket's name, which Linux limits."""
    folder = multiprocessing.util.get_temp_dir()
    if len(os.fsencode(os.path.join(folder, "listener-12345678"))) > SOCKET:
        raise UserError(
            f"The folder for temporary files, {tempfile.gettempdir()}, has too long a name for a socket: set TMPDIR to "
            "one of at most 70 letters, for example TMPDIR=/tmp."
        )


def _build(request: Request, draft: Path, tokenizer: str, send) -> None:
    """The child: build the task as lm-eval does, and save the splits that evaluation reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # lm-eval prints a line for each try
    try:
        documents, splits = _splits(request, tokenizer)
        draft.mkdir(parents=True)
        for split, data in splits.items():
            data.save_to_disk(str(draft / split))
        kept = Prepared.of(draft, documents)
        about = {**request.leaf.identity, "context": request.context, "splits": list(splits)}
        write_atomic(draft / "manifest.json", about | {"documents": kept.count, "sha256": kept.sha256})
        send.send((None, ""))
    except Exception as error:
        words = " ".join(str(error).split())
        send.send((type(error).__name__, words[:400]))


def build_task(config: dict):
    """lm-eval's task object of a configuration: its own class, or the one that the configuration names."""
    from lm_eval.api.task import ConfigurableTask

    kind = config.get("class") or ConfigurableTask
    task = kind(config=config) if "config" in inspect.signature(kind.__init__).parameters else kind()
    task.config.task = config["task"]
    return task


def _splits(request: Request, tokenizer: str) -> tuple[Iterable[dict], dict[str, Any]]:
    """The documents that are evaluated, and data sets by split. For data_seed=0 the seeds are those of lm-eval's own
    command line."""
    import datasets

    datasets.disable_progress_bars()
    config = task_config(request, {"tokenizer": tokenizer})
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
    return task.eval_docs, {split: task.dataset[split] for split in kept}


def task_config(request: Request, metadata: dict) -> dict:
    """The leaf's configuration as lm-eval's constructor takes it, with the metadata that documents are made from."""
    config = request.leaf.config(functions=True)
    own = config.get("metadata")
    lengths = {"max_seq_lengths": [request.context]} if request.leaf.ruler else {}
    config["metadata"] = {**(own if isinstance(own, dict) else {}), **lengths, **request.metadata, **metadata}
    if request.num_fewshot is not None:
        config["num_fewshot"] = request.num_fewshot
    return config


def _bound(samples: int | None) -> None:
    """Make RULER's builders stop after `samples` documents, and end this process where they try without end.

    The builders loop over `tqdm(range(500))` and draw sample after sample, so that the first documents do not depend on
    how many follow. Where nothing fits, some of them catch every exception and try again: only the end of the process
    ends that.
    """
    tries = _Tries()

    def progress(numbers: range, **_) -> Iterator[int]:
        for number in numbers[:samples]:
            tries.forget()
            yield number

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
