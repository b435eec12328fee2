"""The page as a W&B report, with tables of the values and panels over the project's runs.

No other module uses wandb-workspaces, whose interface is a preview.
"""

import html
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.common.errors import UserError
from harness.common.table import Table
from harness.report.describe import Grid, Group, Heat, Live, Page, Panel, Section, Text

PROJECT = "positional-lsh"  # the default of harness.run's tracking
MAX_ROWS = 60  # of a table; the local page has all rows


def save(page: Page, *, title: str) -> str:
    """Save the report and return its URL; a report of this title in the project is replaced.

    Entity and project come from WANDB_ENTITY and WANDB_PROJECT, as for runs.

    Raises:
        UserError: without an API key, or if the server refuses the report.
    """
    import wandb

    if not _has_key():
        raise UserError(
            "--wandb needs an API key: set WANDB_API_KEY or run `wandb login`. Without one, python -m harness.report "
            "draws the same page as a local file."
        )
    try:
        api = wandb.Api(timeout=30)
        entity = os.environ.get("WANDB_ENTITY") or api.default_entity or ""
        report = build_report(page, title=title, entity=entity, project=os.environ.get("WANDB_PROJECT") or PROJECT)
        report.id = _existing_id(api, report.entity, report.project, title)
        report.save()
    except Exception as error:  # wandb's errors are many and change between versions
        message = " ".join(str(error).split())[:300]
        raise UserError(
            f"W&B did not take the report ({type(error).__name__}: {message}). Check WANDB_BASE_URL, the key and the "
            "entity."
        ) from error
    return report.url


def build_report(page: Page, *, title: str, entity: str, project: str):
    """Return a `wandb_workspaces` report.

    Args:
        page: the description of the page.
        title: title of the report.
        entity: W&B entity.
        project: W&B project.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.MarkdownBlock(text=_escape(page.lead)), wr.TableOfContents()]
    for section in page.sections:
        blocks += _section(section, entity, project)
    return wr.Report(project=project, entity=entity, title=title, description=page.title, blocks=blocks, width="fixed")


def _section(section: Section, entity: str, project: str) -> Iterator:
    import wandb_workspaces.reports.v2 as wr

    yield wr.H2(text=section.title)
    if section.blocks:
        yield wr.MarkdownBlock(text=_escape(section.look_for))
    for block in section.blocks:
        if isinstance(block, Text):
            yield wr.MarkdownBlock(text=_escape(block.sentence))
        elif isinstance(block, Grid):
            yield wr.MarkdownBlock(text=_first_rows(block.table))
        else:
            yield wr.H3(text=block.title)
            if block.live:
                yield _live(block, block.live, entity, project)
            yield from (wr.MarkdownBlock(text=_first_rows(values(panel))) for panel in block.panels)
    for sentence, command in section.missing:
        yield wr.MarkdownBlock(text=_escape(sentence))
        yield wr.CodeBlock(code=command, language="markdown")
    if section.commands:
        yield wr.CodeBlock(code="\n".join(section.commands), language="markdown")


def values(panel: Panel | Heat) -> Table:
    """Return the points of a plot with their intervals, as a table."""
    notes = panel.squares.values() if isinstance(panel, Heat) else [p for s in panel.series for p in s.points]
    rows = [p.note.split("\n", 1) for p in notes]
    return Table(panel.title, ["point", f"value [{panel.bars}], n"], [[*row, ""][:2] for row in rows], [])


def _live(group: Group, live: Live, entity: str, project: str):
    """Return a scatter plot of the metric over the model's runs in the project."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    x = wr.Config(live.x.removeprefix("config."))
    plot = wr.ScatterPlot(
        title=group.title,
        x=x,
        y=wr.SummaryMetric(live.y),
        log_x=live.log_x,
        log_y=live.log_y,
        layout=wr.Layout(w=24, h=9),
    )
    filters = [expr.Config("model") == live.model]
    runs = wr.Runset(entity=entity, project=project, name=group.title, filters=filters)
    return wr.PanelGrid(runsets=[runs], panels=[plot])


def _first_rows(table: Table) -> str:
    hidden = len(table.rows) - MAX_ROWS
    notes = [*table.notes, f"And {hidden} more rows: see the local page."] if hidden > 0 else table.notes
    return Table(table.title, table.columns, table.rows[:MAX_ROWS], notes).markdown()


def _escape(sentence: str) -> str:
    """Escape a sentence for Markdown."""
    escaped = html.escape(sentence, quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]#|" else c for c in escaped)


def _existing_id(api, entity: str, project: str, title: str) -> str:
    """Return the id of the project's report of this title; empty if there is none."""
    try:
        ids = [r.id for r in api.reports(f"{entity}/{project}") if r.display_name == title]
    except ValueError:  # the project does not exist yet; saving creates it
        return ""
    return ids[0] if ids else ""


def _has_key() -> bool:
    """Look for a key in the environment and in netrc, without asking on a terminal."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
