"""Accuracy against the number of masks, beside exact ALiBi and both windows of equal cost."""

from harness.analysis.reader import Question
from harness.report.describe import Axis, Live, Panel, Section, Series, points
from harness.report.sections import common

SPREAD = 1.045  # methods stand side by side so that intervals do not hide one another


def section(questions: list[Question]) -> Section:
    def draw(model: str, group: list[Question]) -> list[Panel]:
        return [p for q, title in zip(group, common.titles(group), strict=True) if (p := _panel(q, title))]

    groups, commands = common.groups(questions, draw, Live("config.masks", "", log_x=True))
    missing = [("No cell of Positional LSH has an accuracy.", "python -m harness.run attn=plsh masks=16")]
    return Section(
        "masks",
        "Accuracy against the number of masks",
        "How many masks it takes until Positional LSH reaches the level of exact ALiBi, and whether it gets there "
        "before the windows that visit as many pairs as its masks do. A window is drawn at the number of masks it was "
        "matched to. Bars and the grey band are 95 % intervals.",
        groups,
        commands,
        [] if groups else missing,
    )


def _panel(q: Question, title: str) -> Panel | None:
    found = common.masks_series(q)
    counts = {common.masks_of(r) for records in found.values() for r in records}
    series: list[Series] = []
    for place, ((method, remark), records) in enumerate(found.items()):
        drawn = points(common.point(common.masks_of(r) * SPREAD**place, r.score, r.cell.label) for r in records)
        series.append(Series(method, drawn, tags=common.tags_of(records[0], q.model), remark=remark))
    for place, ((match, tags, remark), windows) in enumerate(common.windows(q).items(), start=1):
        drawn = points(
            common.point(masks / SPREAD**place, w.score, f"{w.cell.label}, matched to S={masks}")
            for masks, w in sorted(windows.items())
        )
        series.append(Series(common.WINDOWS[match], drawn, tags=tags, remark=remark))
    series = [s for s in series if s.points]
    if not series:
        return None
    x = Axis("masks S", log=True, ticks=common.plain(counts), range=(min(counts) / 1.5, max(counts) * 1.5))
    return Panel(title, x, common.score_axis(q), [*common.exact_band(q), *series])
