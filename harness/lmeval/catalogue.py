"""Which lm-eval tasks there are, by name, without importing lm-eval until one is asked for.

A leaf is one task as lm-eval runs it. Groups and tags are expanded to leaves, each of which is a task of its own here,
with its own samples, intervals and resume.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest
from harness.lmeval import quiet

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
# made of word lists and one repeated sentence: they need no data set, and ask for no knowledge of a language
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
        """The task's configuration; its functions as such, which imports their modules, or as strings."""
        from lm_eval.tasks._yaml_loader import load_yaml

        with quiet():
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
        """Whether its documents are made by code, from the tokenizer, the length and a seed, rather than read."""
        return "custom_dataset" in self.config(functions=False)

    @functools.cached_property
    def identity(self) -> dict:
        """What distinguishes this task from another of the same name: its whole definition, what it includes, the code
        and the local data that it names."""
        config = json.dumps(_by_content(self.config(functions=False), self.yaml.parent), sort_keys=True, default=str)
        definition = hashlib.sha256(config.encode()).hexdigest()[:16]
        return {"name": self.name, "lm_eval": version(), "definition": definition}


def _by_content(value: Any, folder: Path) -> Any:
    """A configuration with the files it names replaced by their content, and paths by what they are relative to."""
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


def version() -> str:
    """The version of lm-eval in use: part of every task's identity, because tasks change between versions."""
    return importlib.metadata.version("lm-eval")


def ruler_leaves(names: Sequence[str]) -> list[Leaf]:
    """Leaves of RULER (13 tasks) by name. Raises UserError for another name."""
    files = {}
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
    """Leaves of any task, group or tag of lm-eval, and of a folder of the user's own YAML files. Reading lm-eval's
    14,000 definitions takes seconds; RULER's names do without. Raises UserError for an unknown name."""
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
    return Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"


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
