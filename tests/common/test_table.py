"""What stands in a table does nothing to a terminal and nothing in Markdown."""

import io
import re
import sys

import pytest

from harness.common import streams
from harness.common.errors import report_mistake
from harness.common.progress import Progress
from harness.common.table import Table, say

TITLE, CLIPBOARD, COLOUR = "\x1b]0;owned\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b[31m"
HOSTILE = f"a{TITLE}{CLIPBOARD}{COLOUR}\x9b31m\r\x08\x7f\u202eb [red]c[/red]"


def test_control_characters_never_reach_a_terminal(monkeypatch, capsys):
    streams.say_once.cache_clear()
    Table(HOSTILE, [HOSTILE], [[HOSTILE]], [HOSTILE]).print()
    say(HOSTILE)
    streams.say_once(HOSTILE)
    Progress().say(HOSTILE)
    report_mistake(HOSTILE)
    out, err = capsys.readouterr()
    assert not streams.CONTROL.search(out) and not streams.CONTROL.search(err)
    assert "\\x1b]0;owned" in out and "[red]c[/red]" in out and "\\u202e" in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_obeys_no_text(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    progress.start(f"{CLIPBOARD} [bold]x", 10, 0)
    progress.stop()
    shown = sys.stderr.getvalue()
    assert "\x1b]52" not in shown and "[bold]x" in shown


@pytest.mark.parametrize(
    "text",
    [
        "![i](http://evil/x.png)", "[l](javascript:alert(1))", "[![i](http://evil/a)](http://evil/b)", "[a][b]",
        "<img src=x onerror=alert(1)>", "<http://evil>", "\\![i](http://evil)", "a\\](http://evil)", "a|b\\|c\nd",
    ],
)  # fmt: skip
def test_in_markdown_nothing_is_loaded_and_nothing_leads_anywhere(text):
    markdown_it = pytest.importorskip("markdown_it")
    drawn = Table(text, ["x", text], [[text, "1"]], [text]).markdown()
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(drawn)
    assert not re.search(r"<(img|a|script)\b", html), html
    (row,) = re.findall(r"<tbody>.*?</tbody>", html, re.DOTALL)
    assert row.count("<td") == 2  # one cell stays one
    assert "1</td>" in row
