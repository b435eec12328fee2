"""Accuracy by context and needle depth, exact ALiBi beside Positional LSH and its windows."""

from collections import defaultdict
from collections.abc import Mapping

from harness.analysis.reader import DEPTH, Comparison, Record, depth_of
from harness.report.describe import Heat, Live, Section, Tags, points
from harness.report.methods import WINDOWS
from harness.report.sections import common


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on accuracy by depth and context."""
    live = Live("config.context", "TASK/accuracy_depth_0", log_x=True)
    groups, commands = common.groups(comparisons, _heats, live)
    missing = [("No record holds accuracies by depth.", "python -m harness.run task=retrieval")]
    return Section(
        "depth",
        "Where the needle lies: depth and context",
        "Depth 0 is the start of the haystack, farthest from the question; depth 1 its end. What is lost should be "
        "lost at small depths and long contexts, where ALiBi's weights are small. A window loses everything beyond its "
        "reach at once; random masks lose it by degrees. The second line of a square is the 95 % interval.",
        groups,
        commands,
        [] if groups else missing,
    )


def _heats(model: str, group: list[Comparison]) -> list[Heat]:
    """Return heat maps of exact ALiBi, and of each setting of masks with its windows."""
    names = common.titles(group)
    exact = {name: q.exact for q, name in zip(group, names, strict=True) if q.exact}
    masks: dict[tuple, dict[str, Record]] = defaultdict(dict)
    windows: dict[tuple[int, str], dict[tuple[str, str], dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    for q, name in zip(group, names, strict=True):
        for (method, remark), records in common.masks_series(q).items():
            for r in records:
                masks[common.mask_count(r), method.name, remark][name] = r
        for (reference, tags, remark), matched in common.matched_windows(q).items():
            # that of equal passes often is exact ALiBi
            for count, window in matched.items() if reference != "passes" else ():
                windows[count, tags.sampler][reference, remark][name] = window
    heats = [_heat("exact ALiBi", exact, Tags())]
    for setting in sorted(masks):
        count, method, remark = setting
        by_name = masks[setting]
        tags = common.tags_of(next(iter(by_name.values())), model)
        title = ", ".join(filter(None, [f"S={count} {method}", remark]))
        heats.append(_heat(title, by_name, tags))
        # each window once, after its first masks
        for (reference, remark), window_records in windows.pop((count, tags.sampler), {}).items():
            shape = WINDOWS[reference].name.split(" of ")[0]
            title = ", ".join(filter(None, [f"{shape}, pairs of S={count}", remark]))
            heats.append(_heat(title, window_records, Tags(sampler=tags.sampler)))
    return [heat for heat in heats if heat]


def _heat(title: str, records: Mapping[str, Record], tags: Tags) -> Heat | None:
    depth_values = {f for r in records.values() for name in r.metrics if (f := depth_of(name)) is not None}
    depths = sorted(depth_values)
    squares = {}
    for column, (name, r) in enumerate(records.items()):
        for row, depth in enumerate(depths):
            description = f"{r.cell.label}, {name}, depth {depth:g}"
            for p in points([common.point(column, r.metrics.get(f"{r.task}{DEPTH}{depth:g}"), description)]):
                squares[column, row] = p
    if not squares:
        return None
    columns = [name.removesuffix(" tokens").replace(" tokens,", ",") for name in records]
    return Heat(title, "context (tokens)", "depth of the needle", columns, [f"{d:g}" for d in depths], squares, tags)
