"""Words and tags as HTML, whatever a record may hold."""

import html

from harness.report.describe import Tags

FILTERS = ("model", "task", "sampler", "weights")


def escaped(value: object) -> str:
    return html.escape(str(value), quote=True)


def attributes(tags: Tags) -> str:
    """Attributes that the filters read."""
    given = "".join(f' data-{name}="{escaped(value)}"' for name in FILTERS if (value := getattr(tags, name)))
    return f' class="tagged"{given}' if given else ""
