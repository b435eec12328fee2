"""Accuracy against the number of masks, beside exact ALiBi and the windows of equal cost."""

from harness.analysis.reader import Comparison
from harness.report.describe import Axis, Live, Panel, Section, Series, points
from harness.report.methods import WINDOWS
from harness.report.sections import common

SPREAD = 1.045  # ratio between neighbouring methods, so that intervals do not overlap


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on accuracy and the number of masks."""

    def draw(model: str, group: list[Comparison]) -> list[Panel]:
        return [p for q, title in zip(group, common.titles(group), strict=True) if (p := _panel(q, title))]

    groups, commands = common.groups(comparisons, draw, Live("config.masks", "", log_x=True))
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


def _panel(q: Comparison, title: str) -> Panel | None:
    by_method = common.masks_series(q)
    counts = {common.mask_count(r) for records in by_method.values() for r in records}
    series: list[Series] = []
    for position, ((method, remark), records) in enumerate(by_method.items()):
        dots = points(common.point(common.mask_count(r) * SPREAD**position, r.score, r.cell.label) for r in records)
        series.append(Series(method, dots, tags=common.tags_of(records[0], q.model), remark=remark))
    for position, ((name, tags, remark), windows) in enumerate(common.matched_windows(q).items(), start=1):
        dots = points(
            common.point(masks / SPREAD**position, w.score, f"{w.cell.label}, matched to S={masks}")
            for masks, w in sorted(windows.items())
        )
        series.append(Series(WINDOWS[name], dots, tags=tags, remark=remark))
    series = [s for s in series if s.points]
    if not series:
        return None
    x = Axis("masks S", log=True, ticks=common.value_ticks(counts), range=(min(counts) / 1.5, max(counts) * 1.5))
    return Panel(title, x, common.score_axis(q), [*common.exact_band(q), *series])
