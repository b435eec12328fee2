"""2,000 examples, the same each time: no command line, no file of a checkpoint and none of a store
gets a traceback, another exit code than 0, 1, 2 and 75, or a refusal of more than four lines. And the
bench sees what is broken."""

import contextlib
import json
import sys

import pytest
from hypothesis import strategies as st

from harness.common.errors import report_mistake
from tests.fuzz import bench, documents, sessions, table

EXAMPLES = 2000


@pytest.mark.timeout(900)
@pytest.mark.parametrize("session", sessions.SESSIONS, ids=lambda session: session.name)
def test_promises_are_kept(session):
    report = sessions.run(session, round(EXAMPLES * session.share))
    assert not report.broken, "\n\n".join(map(str, report.broken[:3]))
    assert sum(report.codes.values()) == report.examples >= EXAMPLES * session.share * 0.9
    assert set(report.codes) >= {0, 2}  # the session is neither all mistakes nor none


def test_all_examples_have_a_session():
    assert sum(session.share for session in sessions.SESSIONS) == pytest.approx(1)


def _long(message: str) -> int:
    print("a\nb\nc\nd", file=sys.stderr)
    return report_mistake(message)


BROKEN = {
    "traceback": lambda: [][0],
    "exit code 3": lambda: 3,
    "exit code -9": lambda: sys.exit(-9),
    "no JSON line": lambda: 2,
    "long answer": lambda: _long("e"),
    "no answer": lambda: next(n for n in iter(int, 1) if n),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_bench_sees_what_is_broken(kind, monkeypatch):
    monkeypatch.setattr(bench, "CPU_SECONDS", 1)
    with pytest.raises(bench.Broken) as found:
        bench.held(BROKEN[kind], ["x"])
    assert found.value.kind == kind


def test_the_bench_lets_pass_what_is_kept():
    assert bench.held(lambda: report_mistake("a"), [])[0] == 2
    assert bench.held(lambda: sys.exit(0), [])[0] == 0


def test_a_session_counts_what_it_finds(tmp_path):
    @contextlib.contextmanager
    def opened(folder):
        yield st.integers(0, 9), lambda drawn: bench.held(lambda: 3 if drawn == 0 else 0, [str(drawn)])[0]

    report = sessions.run(sessions.Session("numbers", 1.0, opened), 100)
    assert report.as_dict()["broken"] == {"exit code 3": report.examples - report.codes[0]}
    record = {"sessions": [report.as_dict()], "environment": {"commit": "0" * 40, "cores": 1, "command": "x"}}
    assert f"| numbers | {report.examples} |" in table.markdown(record)


def test_documents_are_changed_in_places():
    """Most are near to what they were, so that readers come far into them."""
    document = {"a": {"b": [1, 2, {"c": 3}]}, "d": "e"}
    near = []

    def look(content):
        if isinstance(content, bytes):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(content)
                near.append(isinstance(value, dict) and bool(set(value) & {"a", "d"}))

    @contextlib.contextmanager
    def opened(folder):
        yield documents.contents(json.dumps(document).encode()), lambda content: look(content) or 0

    sessions.run(sessions.Session("documents", 1.0, opened), 300)
    assert sum(near) > 100
