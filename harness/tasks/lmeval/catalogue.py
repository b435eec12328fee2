"""The catalogue of lm-eval tasks by name; lm-eval is imported only when it is needed.

A leaf is a single task of lm-eval. Groups and tags are expanded to leaves, and each leaf is a task
of the runner with separate samples, intervals and resume.
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
from harness.tasks.lmeval import silence

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
# made of word lists and one repeated sentence: no data set and no knowledge of a language needed
SYNTHETIC = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")


@dataclass(frozen=True)
class Leaf:
    """One lm-eval task: its YAML file, and the overrides of the groups that contain it."""

    name: str
    yaml: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ruler(self) -> bool:
        """Whether it is a RULER task."""
        return self.name in RULER and self.yaml.parent.name == "ruler"

    @property
    def synthetic(self) -> bool:
        """Whether it is a RULER task without data sets and natural text."""
        return self.ruler and self.name in SYNTHETIC

    def config(self, *, functions: bool) -> dict:
        """Return the task's configuration.

        functions: whether to import its functions; otherwise they stay strings.
        """
        from lm_eval.tasks._yaml_loader import load_yaml

        with silence(), _fresh_imports() if functions and self.user_defined else contextlib.nullcontext():
            config = {**load_yaml(self.yaml, resolve_func=functions), **self.overrides}
        return {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}

    @functools.cached_property
    def generates(self) -> int:
        """Maximum number of tokens that a request generates; 0 for likelihoods."""
        from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS
        from lm_eval.models.utils import normalize_gen_kwargs

        config = self.config(functions=False)
        if config.get("output_type", "generate_until") != "generate_until":
            return 0
        return normalize_gen_kwargs(dict(config.get("generation_kwargs") or {}), DEFAULT_MAX_GEN_TOKS)["max_gen_toks"]

    @functools.cached_property
    def makes_documents(self) -> bool:
        """Whether code makes its documents from tokenizer, length and seed."""
        return "custom_dataset" in self.config(functions=False)

    @functools.cached_property
    def user_defined(self) -> bool:
        """Whether it is the user's; lm-eval's tasks are fixed by its version."""
        return not self.yaml.resolve().is_relative_to(_task_folder().resolve())

    @functools.cached_property
    def reads_locally(self) -> bool:
        """Whether its documents come from local files or code, which may be edited."""
        config = self.config(functions=False)
        if not self.user_defined:
            return False
        if "custom_dataset" in config or "class" in config:
            return True
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        path = str(config.get("dataset_path"))
        remote = "://" in str(config.get("dataset_kwargs"))
        return os.path.exists(os.path.expanduser(path)) or (path in _PACKAGED_DATASETS_MODULES and not remote)

    @functools.cached_property
    def identity(self) -> dict:
        """The identity of the task: name, lm-eval's version and a hash of its definition.

        The hash covers included files, the code and local data that it names, and for a task of the
        user all code in its folder.
        """
        raw = self.config(functions=False)
        config = json.dumps(_by_content(raw, self.yaml.parent), sort_keys=True, default=str)
        if self.user_defined:
            config += json.dumps(_code(_folders(raw, self.yaml.parent)))
        definition = hashlib.sha256(config.encode()).hexdigest()[:16]
        return {"name": self.name, "lm_eval": version(), "definition": definition}


def _by_content(value: Any, folder: Path) -> Any:
    """Return a configuration with files replaced by hashes, and paths relative to `folder`."""
    if isinstance(value, Mapping):
        return {str(k): _by_content(v, folder) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(v, folder) for v in value]
    if not isinstance(value, str) or "/" not in value or len(value) > 1000 or "\n" in value:
        return value
    code = Path(value.rpartition(".")[0] + ".py")  # a function is given as MODULE_PATH.NAME
    file = code if os.path.isfile(code) else Path(value)
    if os.path.isfile(file):
        return f"{value.rpartition('.')[2]} {hashlib.sha256(file.read_bytes()).hexdigest()}"
    return value.removeprefix(f"{folder}/")


def _folders(value: Any, folder: Path) -> set[Path]:
    """Return folders with code that a definition may import: its own, and named functions'."""
    if isinstance(value, Mapping):
        return {folder}.union(*(_folders(v, folder) for v in value.values()))
    if isinstance(value, (list, tuple)):
        return {folder}.union(*(_folders(v, folder) for v in value))
    path = Path(value) if isinstance(value, str) and "/" in value and len(value) <= 1000 else folder / "."
    module = path.parent / (path.name.rpartition(".")[0].replace(".", "/") + ".py")
    return {folder, path.parent} if os.path.isfile(module) else {folder}


def _code(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """Return names and hashes of all modules in these folders and their packages."""
    modules, visited = set(), set()
    for top in folders:
        for folder, subfolders, names in os.walk(top, followlinks=True):
            path = Path(folder)
            if (real := os.path.realpath(folder)) in visited or (path / "pyvenv.cfg").exists():
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = [name for name in subfolders if name.isidentifier() and name != "__pycache__"]
            for file in (path / name for name in names if name.endswith(".py")):
                modules.add((str(file.relative_to(top)), hashlib.sha256(file.read_bytes()).hexdigest()))
    return sorted(modules)


_USER_MODULES: set[str] = set()  # the user's modules that the last definition imported


@contextlib.contextmanager
def _fresh_imports() -> Iterator[None]:
    """Import the user's code from its source files, within this context.

    The process may have imported an earlier version, or a module of the same name in another
    folder. Bytecode is not written, because its timestamps resolve seconds only.
    """
    for name in _USER_MODULES:
        sys.modules.pop(name, None)
    _USER_MODULES.clear()
    importlib.invalidate_caches()
    loaded_before, no_bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = no_bytecode
        _USER_MODULES.update(name for name in set(sys.modules) - loaded_before if user_source(sys.modules[name]))


def user_source(module: ModuleType) -> Path | None:
    """Return the source file of a user's module; None for installed code and this project."""
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    parts: list[str | Path] = [
        sys.prefix,
        sys.base_prefix,
        _task_folder().parent,
        *(ROOT / name for name in ("harness", "kernels")),
    ]
    source = Path(file).resolve()
    return None if any(source.is_relative_to(Path(part).resolve()) for part in parts) else source


def version() -> str:
    """Return lm-eval's version, a part of each task's identity: tasks change between versions."""
    return importlib.metadata.version("lm-eval")


def ruler_leaves(names: Sequence[str]) -> list[Leaf]:
    """Return leaves of RULER (13 tasks) by name; raise UserError for an unknown name."""
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
    """Return the leaves of tasks, groups and tags of lm-eval or of the user's YAML files.

    Reading lm-eval's 14,000 definitions takes seconds; names of RULER tasks need none of them.

    Args:
        names: names of tasks, groups or tags.
        include_path: folder of the user's YAML files.

    Raises:
        UserError: for an unknown name.
    """
    if include_path is None and all(name in RULER for name in names):
        return ruler_leaves(names)
    index = _index(include_path, defaults=False)
    if not set(names) <= set(index):
        index = _index(include_path, defaults=True)
    by_name: dict[str, Leaf] = {}
    for name in names:
        if name not in index:
            raise UserError(f"task.lm_eval.names: lm-eval has no task {name!r}.{nearest(name, index)}")
        for leaf in _expand(name, {}, index):
            by_name.setdefault(leaf.name, leaf)
    return list(by_name.values())


def _task_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None, "lm-eval is a dependency"
    return Path(spec.origin).parent / "tasks"


@functools.cache
def _index(include_path: str | None, *, defaults: bool) -> dict:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(os.path.expanduser(include_path)) if include_path else None
    if folder and not os.path.isdir(folder):
        raise UserError(f"task.lm_eval.include_path={include_path}: there is no such folder.")
    for file in sorted(folder.rglob("*.yaml")) if folder else ():
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # lm-eval would ignore the file silently
            message = " ".join(str(error).split())
            raise UserError(f"task.lm_eval.include_path: {file} cannot be read: {message}.") from None
    return TaskManager(include_path=folder and str(folder), include_defaults=defaults).task_index


def _expand(name: str, overrides: dict, index: dict) -> Iterator[Leaf]:
    entry = index[name]
    kind = entry.kind.name
    if kind == "TAG":
        for member in sorted(entry.tags):
            yield from _expand(member, overrides, index)
    elif kind == "GROUP":
        members = entry.cfg.get("task") or []
        for member in [members] if isinstance(members, str) else members:
            added = {} if isinstance(member, str) else {k: v for k, v in member.items() if k not in ("task", "group")}
            child = member if isinstance(member, str) else member.get("task") or member.get("group")
            if not isinstance(child, str) or child not in index:
                raise UserError(f"lm-eval's group {name} defines a task inline: name its tasks one by one instead.")
            yield from _expand(child, {**overrides, **added}, index)
    else:
        yield Leaf(name, entry.yaml_path, overrides)
