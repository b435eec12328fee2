"""Templates of the page, and tags as attributes of its elements. Whatever a record may hold is
escaped."""

from pathlib import Path

import jinja2

from harness.report.describe import Tags

HERE = Path(__file__).parent
FILTERS = ("model", "task", "sampler", "weights")


def attributes(tags: Tags, kind: str = "") -> dict[str, str]:
    """The class of an element and what the filters read of it."""
    given = {f"data-{name}": value for name in FILTERS if (value := getattr(tags, name))}
    classes = " ".join(filter(None, [kind, "tagged" if given else ""]))
    return {"class": classes, **given} if classes else {}


def environment() -> jinja2.Environment:
    """What the templates beside this file are drawn with."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["attributes"] = attributes
    return made
