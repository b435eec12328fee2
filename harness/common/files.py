"""Files that are there whole or not at all: whoever reads one sees the old file or the new one,
whenever the writer was killed. And files that may hold anything, because stores are copied, merged
and sent: what cannot be read is named once on stderr, and stands for nothing."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from harness.common.secrets import without_secrets_in
from harness.common.streams import say_once

DRAFT = re.compile(r"\..+\.(?:[0-9a-f]{12}|([0-9a-f]{6})-(\d+)-[0-9a-f]{6})(?:\.wrong)?", re.ASCII)  # names of drafts
LIFETIME = 3600.0  # seconds of silence after which the writer of a draft on another machine is gone
DEEPEST = 100  # lists and mappings within one another that a file may hold
LONGEST = 300  # digits of a whole number: more than that no float holds


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else has, for a file or a folder to be put in its place from
    there. The folder around it is made if need be; what is left at the name in the end is
    removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:6]}")  # as DRAFT says
    try:
        yield draft
    finally:
        _remove(draft)


def remove_drafts(folder: Path) -> None:
    """Remove from a folder what processes that are gone have left of `draft_of`, and nothing else
    that lies there."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if (draft := DRAFT.fullmatch(name)) and _is_left(folder / name, draft[1], draft[2]):
                _remove(folder / name)


def _is_left(draft: Path, machine: str | None, pid: str | None) -> bool:
    """Whether its writer is gone: a process of this machine, or one that has long been silent."""
    if machine == _machine():
        return not _runs(int(pid or 0))
    try:
        within = draft.rglob("*") if draft.is_dir() and not draft.is_symlink() else ()
        last = max(os.lstat(path).st_mtime for path in (draft, *within))
    except OSError:
        return False
    return time.time() - last > LIFETIME


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # which does nothing to it
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


@functools.cache
def _machine() -> str:
    """Of all processes that see each other's numbers."""
    named = [socket.gethostname()]
    with contextlib.suppress(OSError):
        named += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("".join(named).encode()).hexdigest()[:6]


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(draft) if draft.is_dir() and not draft.is_symlink() else draft.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """In the `with` block: a name to write a file to, which replaces `path` at the end of the
    block. Where the block raises, `path` stays as it is.

    durable: the content is on disk before the name is; without it, a power cut may leave an empty
        file, which only the reader of a cache can take.
    """
    with draft_of(path) as draft:
        yield draft
        if durable:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file by this content, text as UTF-8; `durable` as in `replacing`. Raises OSError."""
    with replacing(path, durable=durable) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_atomic(path: Path, value: object) -> None:
    """Replace a file by a value as JSON, without secrets. Raises OSError, and ValueError for NaN and
    infinity."""
    write_whole(path, json.dumps(without_secrets_in(value), indent=1, allow_nan=False) + "\n")


def read_file(path: Path) -> bytes | None:
    """The content of a regular file; None if nothing is there.

    Raises OSError for a folder, a link that leads nowhere and whatever may not be read. Never waits
    for the writer of a pipe.
    """
    try:
        file = open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise OSError(errno.ENOENT, "this link leads nowhere", str(path)) from None
        return None
    with file:
        return file.readall()


def open_file(path: Path) -> io.FileIO:
    """Open a regular file for reading bytes. Raises OSError for anything else."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "this is no regular file", str(path))
    return io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def parse_json(text: bytes) -> Any:
    """JSON as the store writes it. Raises ValueError for anything else, and for numbers that no
    float holds and values that lie too deep, which are JSON too."""
    try:
        value = _decode(text.decode())
        if text.count(b"[") + text.count(b"{") > DEEPEST:
            _refuse_depth(value)
    except RecursionError:
        raise ValueError("its values lie too deep") from None
    return value


def read_json(path: Path, *, quiet: bool = False) -> dict | None:
    """Return the mapping in a JSON file; None if there is no file. Raises nothing: a file that
    cannot be read or has any other content gives None too, and is named on stderr unless
    `quiet`."""
    try:
        content = read_file(path)
        if content is None:
            return None
        value = parse_json(content)
        if isinstance(value, dict):
            return value
        raise ValueError(f"a {type(value).__name__} in place of a mapping")
    except (OSError, ValueError) as error:
        if not quiet:
            say_odd(path, error)
        return None


def listed(folder: Path, ending: str = "") -> list[Path]:
    """What a folder holds with names of this ending, in order of names; see `names_in`."""
    return [folder / name for name in names_in(folder) if name.endswith(ending)]


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in order. A folder that cannot be read is named on stderr, and holds
    nothing."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        if folder.is_symlink():
            say_odd(folder, "this link leads nowhere")
    except OSError as error:
        say_odd(folder, error)
    return []


def say_odd(path: Path, why: object) -> None:
    """Say once that something in a store cannot be read, or what `odd_files` collects."""
    told = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
    told = " ".join(told.split())[:300]
    for found in _collecting:
        found.setdefault(path, told)
    if not any(found.quiet for found in _collecting):
        say_once(f"{path} cannot be read, and is left out: {told}")


class OddFiles(dict[Path, str]):
    """What could not be read, and why. quiet: not to be said on stderr, too."""

    quiet = False


_collecting: list[OddFiles] = []


@contextlib.contextmanager
def odd_files(*, quiet: bool = False) -> Iterator[OddFiles]:
    """In the `with` block: what cannot be read is put in here."""
    found = OddFiles()
    found.quiet = quiet
    _collecting.append(found)
    try:
        yield found
    finally:
        del _collecting[next(i for i, each in enumerate(_collecting) if each is found)]


def _refuse_depth(value: Any) -> None:
    layer = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for each in layer:
            inner += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        layer = inner
    if layer:
        raise ValueError("its values lie too deep")


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"the number {text[:20]} in it is too large")
    return value


def _int(text: str) -> int:
    if len(text) > LONGEST:
        raise ValueError(f"the number {text[:20]}... in it is too large")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} in it is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_float, parse_int=_int).decode


def short_hash(value: object) -> str:
    """16 hexadecimal digits over canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
