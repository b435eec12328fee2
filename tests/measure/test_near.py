"""The figures of the near field: forms of a text, pairs of records, and the picture of the record."""

import re
import xml.etree.ElementTree as ET

import pytest

from harness.common.errors import UserError
from tests.measure import near, near_picture
from tests.report import made

TEXT = "Call me\nIshmael.  Some\tyears\n\n\nago, never\nmind.\n"


def test_forms_change_nothing_but_white_space():
    found = {name: form(TEXT) for name, form in near.FORMS.items()}
    assert found == {
        "file": TEXT,
        "wrapped": TEXT,
        "unwrapped": "Call me Ishmael. Some years ago, never mind.\n",
        "paragraphs": "Call me Ishmael. Some years\n\nago, never mind.\n",
    }


def store(folder, *, without=""):
    """Exact ALiBi right in all 40, PLSH in 30, 36 with the near field, windows in 20 or 24."""
    cost = {0: (20.0, 12.0), 64: (60.0, 50.0)}
    made.record(made.cell(folder, made.ALIBI, fused=127.5), lambda k: 1.0)
    for field, (fused, _) in cost.items():
        more = {"near": field} if field else {}
        right = 36 if field else 30
        masks = made.cell(folder, {**made.plsh(16, "rb"), **more}, fused=fused, passes=200.0)
        made.record(masks, lambda k, right=right: float(k < right))
        if without != f"window {field}":
            made.record(made.cell(folder, {**made.window(3.0), **more}, fused=fused), lambda k: float(k < 20))
        tokens, pairs = made.sliding_of(fused, 256)
        made.record(made.cell(folder, made.sliding(tokens), fused=pairs), lambda k: float(k < 24))
    made.record(made.cell(folder, made.sliding(64), fused=55.1), lambda k: 0.0)


def test_each_method_is_found_with_its_references(tmp_path):
    store(tmp_path)
    rows = {row["name"]: row for row in near.measure_retrieval(tmp_path)["rows"]}
    assert rows.keys() == near.NAMES.keys()
    for field, right in ((0, 30), (64, 36)):
        minus = {role: change["value"] for role, change in rows[f"plsh {field}"]["minus"].items()}
        assert minus == pytest.approx(
            {"exact": right / 40 - 1, "window": (right - 20) / 40, "sliding": (right - 24) / 40}
        )
    assert rows["sliding 0"]["minus"].keys() == {"exact"}
    assert rows["tile"]["accuracy"]["value"] == 0.0
    assert rows["exact"]["minus"] == {}


def test_a_store_that_lacks_a_cell_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no retrieval"):
        near.measure_retrieval(tmp_path)
    store(tmp_path, without="window 64")
    with pytest.raises(UserError, match="window with near=64 is not in the store"):
        near.measure_retrieval(tmp_path)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--model", "tiny-book", "--text", "x"], "--model tiny-book is no embedded model"),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--text", "x", "--chunks", "7"], "--chunks 7 is too few"),
        (["--text", "short.txt"], "it takes more than 1024"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text(TEXT)
    assert near.main(["--json", "out.json", "text", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_the_committed_picture_shows_the_committed_record():
    """Run `python -m tests.measure.near_picture` if this fails."""
    plots = near_picture.plots()
    text = near_picture.PICTURE.read_text()
    assert text == near_picture.svg(plots)
    root = ET.fromstring(text)
    marks = [
        e for e in root.iter() if re.sub("{.*}", "", e.tag) in ("circle", "rect", "polygon") and "stroke" in e.attrib
    ]
    assert len(marks) == 3 + sum(len(plot.marks) for plot in plots)
    for plot in plots:
        assert {(m.method, m.near) for m in plot.marks} == {
            *((name, field) for name in ("plsh", "window") for field in (False, True)),
            ("sliding", False),
        }
        assert all(m.low <= m.loss <= m.high for m in plot.marks)
