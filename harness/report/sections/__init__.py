"""The sections of the page, from top to bottom.

A new section is a file with a function `section(comparisons) -> Section` and a line here.
"""

from collections.abc import Callable

from harness.analysis.reader import Comparison
from harness.report.describe import Section
from harness.report.sections import (
    cells,
    context,
    cost,
    depth,
    distance,
    heads,
    kernels,
    masks,
    provenance,
    verdict,
    words,
)

SECTIONS: tuple[Callable[[list[Comparison]], Section], ...] = (
    words.section,
    verdict.section,
    masks.section,
    depth.section,
    distance.section,
    cost.section,
    heads.section,
    context.section,
    kernels.section,
    cells.section,
    provenance.section,
)
