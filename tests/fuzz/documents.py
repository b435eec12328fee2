"""Strategies for what stands in a file's place: a document changed in a few places, another document,
bytes, or no file at all."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**400,
    0.5,
    -1e308,
    "",
    "8",
    "ok",
    "x" * 5000,
    "\0",
    "../..",
    "/",
]
ODD += [
    "\ud800",
    "\x1b]0;x\x07",
    "é",
    "0",
    [],
    {},
    [[]],
    {"a": {}},
    [1],
    {"": None},
    "1e999",
    float("nan"),
    float("inf"),
]
NAMES = [
    "",
    "model_type",
    "schema",
    "n_heads",
    "status",
    "key",
    "metrics",
    "a/b",
    "_",
    "auto_map",
    "quantization_config",
]

odd = st.sampled_from(ODD)
anything = st.recursive(
    odd | st.text(max_size=6),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3),
    max_leaves=6,
)
BYTES = [
    b"",
    b"{",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"1" * 5000,
]
BYTES += [
    b'{"a": 1e999}',
    b'{"a": NaN}',
    b'{"a": 1, "a": 2}',
    b"\0" * 100,
    b'"x"',
    b"{}\n{}",
    b"version https://git-lfs",
]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path)


KINDS: list[Callable[[Path], object]] = [os.mkdir, _fifo, _dangling, _endless, _circle, lambda path: None]


@st.composite
def changed(draw, document):
    """The document with up to three places replaced, removed, renamed or added to."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, document)
    return document


def _change(draw, value) -> None:
    """Walk down to some place of a list or mapping, and change what is there."""
    while isinstance(value, (dict, list)) and value:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = draw(st.sampled_from(places))
        inner = value[place]
        if isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 3)):
            value = inner
            continue
        match draw(st.integers(0, 5)):
            case 0:
                del value[place]
            case 1 if isinstance(value, dict):
                value[draw(st.sampled_from(NAMES) | st.text(max_size=6))] = draw(anything)
            case 2 if isinstance(value, dict):
                value[draw(st.sampled_from(NAMES))] = value.pop(place)
            case _:
                value[place] = draw(anything)
        return


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def contents(text: bytes):
    """What may stand in the place of a file of this content: bytes, or what makes something else."""
    lines = text.strip().split(b"\n")
    if len(lines) > 1 and all(line[:1] in b"{[" for line in lines):  # a document in each line
        documents = [json.loads(line) for line in lines]
        changes = changed(documents).map(lambda ds: b"\n".join(as_bytes(d) for d in ds) + b"\n")
    else:
        try:
            changes = changed(json.loads(text)).map(as_bytes)
        except ValueError:
            changes = st.binary(max_size=20)
    torn = st.integers(0, len(text)).map(lambda end: text[:end])
    flipped = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 255)).map(
        lambda at: text[: at[0]] + bytes([text[at[0]] ^ at[1]]) + text[at[0] + 1 :] if text else b""
    )
    return st.one_of(
        changes,
        changes,
        changes,
        changes,
        anything.map(as_bytes),
        torn,
        flipped,
        st.sampled_from(BYTES),
        st.sampled_from(KINDS),
    )


def put(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Let this stand in the file's place."""
    path.unlink(missing_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
