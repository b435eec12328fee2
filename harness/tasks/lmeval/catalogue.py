"""Which lm-eval tasks there are, by name, without importing lm-eval until one is asked for.

A leaf is one task as lm-eval runs it. Groups and tags are expanded to leaves, each of which is a
task of its own here, with its own samples, intervals and resume.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.common.errors import UserError, nearest
from harness.common.paths import ROOT
from harness.tasks.lmeval import quiet

RULER = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "ruler_vt",
    "ruler_cwe",
    "ruler_fwe",
    "ruler_qa_squad",
    "ruler_qa_hotpot",
)
# made of word lists and one repeated sentence: they need no data set, and ask for no knowledge of a
# language
SYNTHETIC = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")


@dataclass(frozen=True)
class Leaf:
    """One lm-eval task: its YAML file, and what a group above it overrides."""

    name: str
    yaml: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ruler(self) -> bool:
        return self.name in RULER and self.yaml.parent.name == "ruler"

    @property
    def synthetic(self) -> bool:
        return self.ruler and self.name in SYNTHETIC

    def config(self, *, functions: bool) -> dict:
        """The task's configuration; its functions as such, which imports their modules, or as
        strings."""
        from lm_eval.tasks._yaml_loader import load_yaml

        with quiet(), _imported_anew() if functions and self.own else contextlib.nullcontext():
            config = {**load_yaml(self.yaml, resolve_func=functions), **self.overrides}
        return {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}

    @functools.cached_property
    def generates(self) -> int:
        """Tokens that a request may generate; 0 where likelihoods are asked for."""
        from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS
        from lm_eval.models.utils import normalize_gen_kwargs

        config = self.config(functions=False)
        if config.get("output_type", "generate_until") != "generate_until":
            return 0
        return normalize_gen_kwargs(dict(config.get("generation_kwargs") or {}), DEFAULT_MAX_GEN_TOKS)["max_gen_toks"]

    @functools.cached_property
    def makes_documents(self) -> bool:
        """Whether its documents are made by code, from the tokenizer, the length and a seed, rather
        than read."""
        return "custom_dataset" in self.config(functions=False)

    @functools.cached_property
    def own(self) -> bool:
        """Whether the user has defined it: lm-eval's own are as its version says."""
        return not self.yaml.resolve().is_relative_to(_task_folder().resolve())

    @functools.cached_property
    def reads_locally(self) -> bool:
        """Whether its documents come from files or code of this machine, which may be edited."""
        config = self.config(functions=False)
        if not self.own:
            return False
        if "custom_dataset" in config or "class" in config:
            return True
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        path = str(config.get("dataset_path"))
        elsewhere = "://" in str(config.get("dataset_kwargs"))
        return Path(path).expanduser().exists() or (path in _PACKAGED_DATASETS_MODULES and not elsewhere)

    @functools.cached_property
    def identity(self) -> dict:
        """What distinguishes this task from another of the same name: its whole definition, what it
        includes, the code and the local data that it names, and for one of the user's all code
        beside it."""
        raw = self.config(functions=False)
        config = json.dumps(_by_content(raw, self.yaml.parent), sort_keys=True, default=str)
        if self.own:
            config += json.dumps(_code(_folders(raw, self.yaml.parent)))
        definition = hashlib.sha256(config.encode()).hexdigest()[:16]
        return {"name": self.name, "lm_eval": version(), "definition": definition}


def _by_content(value: Any, folder: Path) -> Any:
    """A configuration with the files it names replaced by their content, and paths by what they are
    relative to."""
    if isinstance(value, Mapping):
        return {str(k): _by_content(v, folder) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(v, folder) for v in value]
    if not isinstance(value, str) or "/" not in value or len(value) > 1000 or "\n" in value:
        return value
    code = Path(value.rpartition(".")[0] + ".py")  # a function: its module's path, a point and its name
    file = code if code.is_file() else Path(value)
    if file.is_file():
        return f"{value.rpartition('.')[2]} {hashlib.sha256(file.read_bytes()).hexdigest()}"
    return value.removeprefix(f"{folder}/")


def _folders(value: Any, folder: Path) -> set[Path]:
    """Where code lies that a definition may import: beside it, and beside the modules whose
    functions it names."""
    if isinstance(value, Mapping):
        return {folder}.union(*(_folders(v, folder) for v in value.values()))
    if isinstance(value, (list, tuple)):
        return {folder}.union(*(_folders(v, folder) for v in value))
    named = Path(value) if isinstance(value, str) and "/" in value and len(value) <= 1000 else folder / "."
    module = named.parent / (named.name.rpartition(".")[0].replace(".", "/") + ".py")
    return {folder, named.parent} if module.is_file() else {folder}


def _code(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """Names and hashes of all modules in these folders, and in packages below them."""
    found, seen = set(), set()
    for top in folders:
        for place, below, names in os.walk(top, followlinks=True):
            here = Path(place)
            if (real := os.path.realpath(place)) in seen or (here / "pyvenv.cfg").exists():
                below.clear()
                continue
            seen.add(real)
            below[:] = [name for name in below if name.isidentifier() and name != "__pycache__"]
            for file in (here / name for name in names if name.endswith(".py")):
                found.add((str(file.relative_to(top)), hashlib.sha256(file.read_bytes()).hexdigest()))
    return sorted(found)


_IMPORTED: set[str] = set()  # modules that came with the last definition


@contextlib.contextmanager
def _imported_anew() -> Iterator[None]:
    """Within, a user's code is read from its files: this process may know an earlier state of it,
    or another module of the same name beside another definition, and compiled files are told from
    their sources by seconds only."""
    for name in _IMPORTED:
        sys.modules.pop(name, None)
    _IMPORTED.clear()
    importlib.invalidate_caches()
    known, written = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = written
        _IMPORTED.update(name for name in set(sys.modules) - known if users_code(sys.modules[name]))


def users_code(module: ModuleType) -> Path | None:
    """The source file of a module that is neither installed nor a part of lm-eval or of this
    project."""
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    parts: list[str | Path] = [
        sys.prefix,
        sys.base_prefix,
        _task_folder().parent,
        *(ROOT / name for name in ("harness", "kernels")),
    ]
    real = Path(file).resolve()
    return None if any(real.is_relative_to(Path(part).resolve()) for part in parts) else real


def version() -> str:
    """The version of lm-eval in use: part of every task's identity, because tasks change between
    versions."""
    return importlib.metadata.version("lm-eval")


def ruler_leaves(names: Sequence[str]) -> list[Leaf]:
    """Leaves of RULER (13 tasks) by name. Raises UserError for another name."""
    files: dict[str, Path] = {}
    folder = _task_folder() / "ruler"
    for file in folder.glob("*.yaml"):
        text = file.read_text()
        name = next((n for n in RULER if f"\ntask: {n}\n" in f"\n{text}\n"), None)
        files |= {name: file} if name else {}
    for name in names:
        if name not in files:
            raise UserError(f"task.ruler.names: {name!r} is not a RULER task.{nearest(name, RULER)}")
    return [Leaf(name, files[name]) for name in dict.fromkeys(names)]


def leaves(names: Sequence[str], include_path: str | None = None) -> list[Leaf]:
    """Leaves of any task, group or tag of lm-eval, and of a folder of the user's own YAML files.
    Reading lm-eval's 14,000 definitions takes seconds; RULER's names do without. Raises UserError
    for an unknown name."""
    if include_path is None and all(name in RULER for name in names):
        return ruler_leaves(names)
    index = _index(include_path, defaults=False)
    if not set(names) <= set(index):
        index = _index(include_path, defaults=True)
    found: dict[str, Leaf] = {}
    for name in names:
        if name not in index:
            raise UserError(f"task.lm_eval.names: lm-eval has no task {name!r}.{nearest(name, index)}")
        for leaf in _expanded(name, {}, index):
            found.setdefault(leaf.name, leaf)
    return list(found.values())


def _task_folder() -> Path:
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.origin is not None, "it is a dependency"
    return Path(found.origin).parent / "tasks"


@functools.cache
def _index(include_path: str | None, *, defaults: bool) -> dict:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(include_path).expanduser() if include_path else None
    if folder and not folder.is_dir():
        raise UserError(f"task.lm_eval.include_path={include_path}: there is no such folder.")
    for file in sorted(folder.rglob("*.yaml")) if folder else ():
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # lm-eval would leave the file out and say nothing
            words = " ".join(str(error).split())
            raise UserError(f"task.lm_eval.include_path: {file} cannot be read: {words}.") from None
    return TaskManager(include_path=folder and str(folder), include_defaults=defaults).task_index


def _expanded(name: str, overrides: dict, index: dict) -> Iterator[Leaf]:
    entry = index[name]
    kind = entry.kind.name
    if kind == "TAG":
        for member in sorted(entry.tags):
            yield from _expanded(member, overrides, index)
    elif kind == "GROUP":
        members = entry.cfg.get("task") or []
        for member in [members] if isinstance(members, str) else members:
            given = {} if isinstance(member, str) else {k: v for k, v in member.items() if k not in ("task", "group")}
            child = member if isinstance(member, str) else member.get("task") or member.get("group")
            if not isinstance(child, str) or child not in index:
                raise UserError(f"lm-eval's group {name} defines a task inline: name its tasks one by one instead.")
            yield from _expanded(child, {**overrides, **given}, index)
    else:
        yield Leaf(name, entry.yaml_path, overrides)
