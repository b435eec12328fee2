"""The writing code of the harness, found in its source: every function that changes a file or a
folder, and every function between it and a command's `main` that leads there."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

Place = tuple[str, str]  # a module's file under the root, a function's qualified name as in its code object
OF_OS = {"fsync", "link", "makedirs", "mkdir", "remove", "rename", "replace", "rmdir", "symlink", "truncate", "unlink"}
OF_OS |= {"fdopen", "utime"}
OF_SHUTIL = {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"}
OF_PATHS = {"hardlink_to", "mkdir", "rmdir", "symlink_to", "touch", "unlink", "write_bytes", "write_text"}
OF_LIBRARIES = {"save_file", "save_pretrained", "save_to_disk", "write_csv", "write_table"}
RENAMING = {"rename", "replace"}  # of a path with one argument; strings and data frames have others


@dataclass
class Function:
    """One function of the harness. names: what it refers to, (what stands before the dot or None,
    name); `Class()` before the dot is a new object. kinds: the classes of its arguments and of the
    objects that it makes, by their names."""

    place: Place
    module: "Module"
    writes: bool
    names: set[tuple[str | None, str]]
    kinds: dict[str, str]


@dataclass
class Module:
    """imported: local name -> (module, its name there, None for the module itself)."""

    file: str
    imported: dict[str, tuple[str, str | None]]
    functions: dict[str, Function]


@functools.cache
def writing() -> frozenset[Place]:
    """The places of the whole package `harness`."""
    return places(ROOT, "harness")


def places(root: Path, package: str) -> frozenset[Place]:
    """The functions of `root/package` that write, and the functions that lead there."""
    modules = {}
    for path in sorted((root / package).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = _module(path, path.relative_to(root).as_posix())
    functions = [function for module in modules.values() for function in module.functions.values()]
    found = {function.place for function in functions if function.writes}
    functions = [f for f in functions if f.place[1].split(".")[0] != "main"]  # signals have no handlers there yet
    while True:
        more = {f.place for f in functions if f.place not in found and _leads(f, modules, found)}
        if not more:
            return frozenset(found)
        found |= more


def _leads(function: Function, modules: dict[str, Module], found: set[Place]) -> bool:
    """Whether the function refers to one of those that are found."""
    return any(place in found for name in function.names for place in _meant(function, modules, *name))


def _meant(function: Function, modules: dict[str, Module], before: str | None, name: str) -> Iterator[Place]:
    """The functions of the package that a name can stand for."""
    module, own = function.module, function.place[1]
    kind = function.kinds.get(before or "") or (before[:-2] if before and before.endswith("()") else None)
    if before is None:
        yield module.file, f"{own}.<locals>.{name}"
        yield module.file, name
        yield module.file, f"{name}.__init__"
        source, there = module.imported.get(name, (None, None))
        if source in modules and there is not None:
            yield modules[source].file, there
            yield modules[source].file, f"{there}.__init__"
    elif before in ("self", "cls"):
        yield module.file, f"{own.rpartition('.')[0]}.{name}"
    elif before in module.imported:
        source, there = module.imported[before]
        source = source if there is None else f"{source}.{there}"
        if source in modules:
            yield modules[source].file, name
    elif kind is not None:  # a method of an object whose class is said
        source, there = module.imported.get(kind, (None, kind))
        yield modules[source].file if source in modules else module.file, f"{there}.{name}"


def _module(path: Path, file: str) -> Module:
    tree = ast.parse(path.read_text())
    module = Module(file, {}, {})
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module.imported |= {a.asname or a.name: (node.module, a.name) for a in node.names}
        elif isinstance(node, ast.Import):
            module.imported |= {a.asname: (a.name, None) for a in node.names if a.asname}

    def enter(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                name = f"{outer}{child.name}"
                inner = list(_own(child))
                writes = any(isinstance(n, ast.Call) and _writes(n, module) for n in inner)
                module.functions[name] = Function(
                    (file, name), module, writes, set(_names(child, inner)), _kinds(child, inner)
                )
                enter(child, f"{name}.<locals>.")
            elif isinstance(child, ast.ClassDef):
                enter(child, f"{outer}{child.name}.")
            else:
                enter(child, outer)

    enter(tree, "")
    return module


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What stands in a function itself, not in functions within."""
    waiting = list(function.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef):
            yield node
            waiting += ast.iter_child_nodes(node)


def _names(function: ast.FunctionDef, nodes: list[ast.AST]) -> Iterator[tuple[str | None, str]]:
    """What it refers to that it has not bound itself."""
    bound = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    bound |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Name) and node.id not in bound:
            yield None, node.id
        elif isinstance(node, ast.Attribute):
            made = isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
            before = node.value.func.id + "()" if made else getattr(node.value, "id", "")
            yield before, node.attr


def _kinds(function: ast.FunctionDef, nodes: list[ast.AST]) -> dict[str, str]:
    kinds = {
        a.arg: a.annotation.id for a in ast.walk(function.args) if isinstance(getattr(a, "annotation", 0), ast.Name)
    }
    for node in nodes:
        made = (
            node.value if isinstance(node, ast.Assign) else node.context_expr if isinstance(node, ast.withitem) else 0
        )
        if isinstance(made, ast.Call) and isinstance(made.func, ast.Name):
            bound = node.targets[0] if isinstance(node, ast.Assign) else node.optional_vars
            if isinstance(bound, ast.Name):
                kinds[bound.id] = made.func.id
    return kinds


def _writes(call: ast.Call, module: Module) -> bool:
    """Whether a call changes a file or a folder."""
    if isinstance(call.func, ast.Name):
        source, name = module.imported.get(call.func.id, (None, call.func.id))
        if name == "open":
            return _for_writing(call, 1)
        return source == "shutil" and name in OF_SHUTIL or source == "os" and name in OF_OS
    if not isinstance(call.func, ast.Attribute):
        return False
    before, name = ast.unparse(call.func.value), call.func.attr
    if before == "os":
        opens = name == "open" and any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        return name in OF_OS or opens and "os.devnull" not in ast.unparse(call)
    if before == "shutil":
        return name in OF_SHUTIL
    if name in RENAMING:
        return len(call.args) == 1 and not call.keywords
    return name in OF_PATHS | OF_LIBRARIES or name == "open" and _for_writing(call, 0)


def _for_writing(call: ast.Call, place: int) -> bool:
    """Whether `open` is told so by its mode, which is its argument at this place."""
    modes = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    text = modes[0].value if modes and isinstance(modes[0], ast.Constant) else ""
    return isinstance(text, str) and bool(set(text) & set("wax+")) and "os.devnull" not in ast.unparse(call)
