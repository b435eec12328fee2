"""Maps of layers x heads: whose approximation the loss is, and where attention goes."""

import re
from collections.abc import Iterator

from harness.analysis.reader import Comparison, Record
from harness.report.describe import Heat, Live, Point, Section, points
from harness.report.sections import common

PLACE = re.compile(r"_(\d+)_(\d+)$")  # layer and head, from 1 on
MAPS = {
    "fidelity/kl_only": "divergence (nats) with this head alone approximated",
    "fidelity/sink_mass": "exact attention on the first tokens",
    "theory/output_error_head": "error of the head's output on its own queries, keys and values",
    "theory/mass_missed_predicted_head": "expected exact attention on keys that no mask covers",
}


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on heads."""

    def draw(model: str, group: list[Comparison]) -> list[Heat]:
        named = zip(group, common.titles(group), strict=True)
        return [heat for q, title in named for r in q.records if r.metrics for heat in _heats(model, r, title)]

    groups, commands = common.groups(comparisons, draw, Live("config.context", "", log_x=True))
    missing = [
        (
            "No record holds figures by head.",
            "python -m harness.run model=tiny-books task=fidelity task.fidelity.attribution=heads context=1024",
        )
    ]
    return Section(
        "heads",
        "Layers and heads",
        "Whose loss the loss is. A few bright squares mean that a few heads need what the masks leave out, and that "
        "pairs spent on them go farther than pairs spent on all. The flattest slopes are on the right. Each map has a "
        "scale of its own.",
        groups,
        commands,
        [] if groups else missing,
    )


def _heats(model: str, record: Record, title: str) -> Iterator[Heat]:
    for prefix, meaning in MAPS.items():
        places = {
            (int(found[1]), int(found[2])): metric
            for name, metric in record.metrics.items()
            if name.startswith(prefix) and (found := PLACE.search(name)) and name == f"{prefix}{found[0]}"
        }
        squares: dict[tuple[int, int], Point] = {}
        for (layer, head), metric in places.items():
            described = f"{record.cell.label}, layer {layer}, head {head}"
            for p in points([common.point(head - 1, metric, described)]):
                squares[head - 1, layer - 1] = p
        if squares:
            layers, heads = (max(place[i] for place in places) for i in (0, 1))
            yield Heat(
                f"{record.cell.label}, {title}: {meaning}",
                "head",
                "layer",
                [str(head) for head in range(1, heads + 1)],
                [str(layer) for layer in range(1, layers + 1)],
                squares,
                common.tags_of(record, model),
                top=max((p.y for p in squares.values()), default=0.0) or 1.0,
            )
