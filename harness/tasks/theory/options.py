"""Options of task=theory."""

from dataclasses import dataclass, field


@dataclass
class Options:
    """Options of task=theory.

    causal: whether a row sees earlier columns only.
    text: a text as in task=perplexity, on which the model's own queries, keys and values are
        measured; None for Gaussian ones, for which no model is loaded.
    score_ranges: ranges r for which the largest error of attention is measured, over all scores
        between -r and r.
    """

    causal: bool = True
    text: str | None = None
    score_ranges: list[float] = field(default_factory=list)
