"""The documents of an lm-eval task: built once, in a child process, and stored with their hash.

lm-eval's synthetic tasks use the global generators, print to stdout, keep state between calls and
always build 500 samples. Some never return if the length is too small. A child process shields the
runner from this: it builds the requested documents under a fixed seed and writes files, which all
cells read.
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
from harness.tasks.lmeval.catalogue import Leaf, user_source
from harness.tasks.prepared import prepare_once

VERSION = 3  # of the storage format, part of the recipe that names the folder
MAX_SOCKET_NAME = 107  # bytes
EXIT_STUCK = 3  # the child's exit code if lm-eval never finds a sample
MAX_EQUAL_CALLS = 200  # in a row, after which lm-eval counts as stuck


@dataclass(frozen=True)
class Request:
    """The values that documents depend on.

    tokenizer: hash or name of the tokenizer that documents are made for.
    samples: the number of RULER's documents; other tasks are read completely.
    metadata: the user's metadata of the task.
    num_fewshot: examples of a prompt, or None for the task's number.
    content: the `fingerprint` of documents that may be edited locally.
    """

    leaf: Leaf
    context: int
    data_seed: int
    tokenizer: str
    samples: int | None
    metadata: dict
    num_fewshot: int | None
    content: str | None = None

    @property
    def recipe(self) -> dict:
        """The recipe of `prepare_once`."""
        recipe = {"version": VERSION, **self.leaf.identity, "metadata": self.metadata, "num_fewshot": self.num_fewshot}
        if self.leaf.makes_documents:
            dependencies = ("context", "data_seed", "tokenizer", *(["samples"] * self.leaf.ruler))
            recipe |= {name: getattr(self, name) for name in dependencies}
        return recipe | ({"content": self.content} if self.content else {})


@dataclass(frozen=True)
class BuildResult:
    """The result of a child process: number of documents, their hash, and a hash of its inputs."""

    count: int
    sha256: str
    fingerprint: str


def prepare_documents(request: Request, folder: Path, tokenizer) -> Prepared:
    """Return the request's documents, and build them if they are not in `folder` yet.

    Args:
        request: the values that the documents depend on.
        folder: folder of all prepared data.
        tokenizer: the tokenizer.

    Raises:
        NotImplementedError: if the task cannot be made at this length.
        UserError: if data or a package is missing, or if the data changed since the run began.
    """

    def make(draft: Path) -> Prepared:
        built = _build_in_child(request, tokenizer, draft)
        if request.content not in (None, built.fingerprint):
            raise UserError(
                f"The data or the code of task={request.leaf.name} changed while this run began: run it again."
            )
        return Prepared(draft, built.count, built.sha256)

    return prepare_once(folder, request.leaf.name, request.recipe, make)


def fingerprint(request: Request, tokenizer) -> str:
    """Return a hash of the current documents, the splits of examples and the imported modules.

    Raises:
        NotImplementedError: if the task cannot be made at this length.
        UserError: if data or a package is missing.
    """
    return _build_in_child(request, tokenizer, None).fingerprint


def _build_in_child(request: Request, tokenizer, draft: Path | None) -> BuildResult:
    """Build the documents in a child process, and save them in `draft` unless it is None."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(f"{scratch}/tokenizer")
        return _run_child(request, draft, Path(scratch))


def _run_child(request: Request, draft: Path | None, scratch: Path) -> BuildResult:
    name = request.leaf.name
    _refuse_long_socket_path()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "harness.tasks.lmeval.preload"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_build, args=(request, draft, scratch, os.getcwd(), send), daemon=True)
    # the runner handles signals to the whole job: the server and its children ignore them
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in StopRequest.SIGNALS}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    child.start()
    send.close()
    try:
        kind, message = receive.recv()
    except EOFError:
        child.join()
        if child.exitcode != EXIT_STUCK:
            raise RuntimeError(f"Preparing the documents of {name} ended with code {child.exitcode}.") from None
        kind, message = "ValueError", "lm-eval finds no sample that fits"
    except BaseException:  # a signal: nobody waits for the documents any more
        child.kill()
        raise
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
            f"The data of task={name} cannot be read ({kind}: {message}). A relative path of a file is "
            "resolved in the folder where the run is started."
        )
    raise UserError(
        f"The data of task={name} cannot be had here ({kind}: {message}). Where there is a network, prepare it with "
        f"python -m harness.data and the same options, and copy {draft.parent if draft else 'it'} to this machine."
    )


def _refuse_long_socket_path() -> None:
    """Raise UserError if the fork server's socket would exceed the length limit of Linux."""
    folder = multiprocessing.util.get_temp_dir()
    if len(os.fsencode(os.path.join(folder, "listener-12345678"))) > MAX_SOCKET_NAME:
        raise UserError(
            f"The folder for temporary files, {tempfile.gettempdir()}, has too long a name for a socket: set TMPDIR to "
            "one of at most 70 letters, for example TMPDIR=/tmp."
        )


def _build(request: Request, draft: Path | None, scratch: Path, cwd: str, send) -> None:
    """Build the task in the child, as lm-eval does, and save the splits that evaluation reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # lm-eval prints a line for each attempt
    try:
        os.chdir(cwd)
        loaded_before = set(sys.modules)
        documents, splits, evaluated = _splits(request, scratch)
        if draft:
            draft.mkdir(parents=True)
            for split, data in splits.items():
                data.save_to_disk(str(draft / split))
        prepared = Prepared.from_samples(scratch, documents)
        imported = [module for name, module in list(sys.modules.items()) if name not in loaded_before]
        code = {file for module in imported if (file := user_source(module)) is not None}
        examples = [data for split, data in sorted(splits.items()) if split != evaluated]
        hashes = [Prepared.from_samples(scratch, data).sha256 for data in examples]
        hashes += sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in code)
        send.send((None, BuildResult(prepared.count, prepared.sha256, short_hash([prepared.sha256, hashes]))))
    except Exception as error:
        text = " ".join(str(error).split())
        send.send((type(error).__name__, text[:400]))


def build_task(config: dict):
    """Return lm-eval's task object, of the class that the configuration names, if any."""
    from lm_eval.api.task import ConfigurableTask

    kind = config.get("class") or ConfigurableTask
    task = kind(config=config) if "config" in inspect.signature(kind.__init__).parameters else kind()
    task.config.task = config["task"]
    return task


def _splits(request: Request, scratch: Path) -> tuple[Iterable[dict], dict[str, Any], str | None]:
    """Return the documents, the data sets by split, and the split that is evaluated.

    With data_seed=0 the seeds equal those of lm-eval's command line.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()  # its key of a function ignores the code that the function calls
    if request.leaf.reads_locally:
        datasets.config.HF_DATASETS_CACHE = scratch / "datasets"  # its key of a file is the date
    config = task_config(request, {"tokenizer": str(scratch / "tokenizer")})
    if request.leaf.ruler:
        _limit_ruler(request.samples)
    random.seed(request.data_seed)
    np.random.seed(1234 + request.data_seed)
    task = build_task(config)
    evaluated = task.config.test_split or task.config.validation_split
    if request.leaf.ruler and not all(document["outputs"] for document in task.dataset[evaluated]):
        raise ValueError("its prompts would ask for nothing")  # lm-eval continues if no word fits
    evaluated_only = evaluated and not task.config.num_fewshot  # Python classes declare their splits in code
    splits = [evaluated] if evaluated_only else list(task.dataset)
    return task.eval_docs, {split: task.dataset[split] for split in splits}, evaluated


def task_config(request: Request, metadata: dict) -> dict:
    """Return the leaf's configuration for lm-eval's constructor.

    metadata: entries that override all others, as the tokenizer's folder.
    """
    config = request.leaf.config(functions=True)
    task_metadata = config.get("metadata")
    lengths = {"max_seq_lengths": [request.context]} if request.leaf.ruler else {}
    defaults = task_metadata if isinstance(task_metadata, dict) else {}
    config["metadata"] = {**defaults, **lengths, **request.metadata, **metadata}
    if request.num_fewshot is not None:
        config["num_fewshot"] = request.num_fewshot
    return config


def _limit_ruler(samples: int | None) -> None:
    """Stop RULER's builders after `samples` documents, and exit this process if they are stuck.

    The builders loop over `tqdm(range(500))` and draw one sample after another, so that the first
    documents do not depend on the number that follows. If nothing fits, some catch every exception
    and retry: only an exit of the process ends them.
    """
    counter = _CallCounter()

    def progress(numbers: range, **_) -> Iterator[int]:
        for number in numbers[:samples]:
            counter.reset()
            yield number

    module: Any
    for name, module in list(sys.modules.items()):
        if name.startswith("lm_eval.tasks.ruler.") and hasattr(module, "tqdm"):
            module.tqdm = progress
            if hasattr(module, "generate_input_output"):
                module.generate_input_output = counter.counted(module.generate_input_output)
            if hasattr(module, "get_tokenizer"):
                module.get_tokenizer = lambda *args, make=module.get_tokenizer, **kwargs: counter.counted(
                    make(*args, **kwargs)
                )


class _CallCounter:
    """Counts consecutive equal calls of each function since the last finished sample."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self.last: dict[Callable, tuple] = {}
        self.count: dict[Callable, int] = {}

    def counted(self, function: Callable) -> Callable:
        """Return the function with a count of its calls, which ends this process if it is stuck."""

        def call(*args, **kwargs):
            repeated = self.last.get(function) == (args, kwargs)
            self.last[function] = (args, kwargs)
            self.count[function] = self.count.get(function, 0) + 1 if repeated else 1
            if self.count[function] > MAX_EQUAL_CALLS:
                os._exit(EXIT_STUCK)
            return function(*args, **kwargs)

        return call
