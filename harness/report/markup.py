"""Words and tags as HTML, whatever a record may hold."""

import html

from harness.report.describe import Tags

FILTERS = ("model", "task", "sampler", "weights")


def escaped(value: object) -> str:
    return html.escape(str(value), quote=True)


def attributes(tags: Tags, kind: str = "") -> str:
    """The class of an element and what the filters read of it."""
    given = "".join(f' data-{name}="{escaped(value)}"' for name in FILTERS if (value := getattr(tags, name)))
    classes = " ".join(filter(None, [kind, "tagged" if given else ""]))
    return f' class="{classes}"{given}' if classes else ""
