"""Templates of the page, and tags as attributes of its elements; all values are escaped."""

from pathlib import Path

import jinja2

from harness.report.describe import Tags

TEMPLATES = Path(__file__).parent
FILTERS = ("model", "task", "sampler", "weights")


def attributes(tags: Tags, kind: str = "") -> dict[str, str]:
    """Return the class of an element and its data attributes, which the filters read."""
    data = {f"data-{name}": value for name in FILTERS if (value := getattr(tags, name))}
    classes = " ".join(filter(None, [kind, "tagged" if data else ""]))
    return {"class": classes, **data} if classes else {}


def template_environment() -> jinja2.Environment:
    """Return the environment of the templates in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["attributes"] = attributes
    return environment
