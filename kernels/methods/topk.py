"""The keys of the highest biased scores in each row: an oracle by content."""

import math
from dataclasses import dataclass

import torch

from kernels.methods.checks import check_slopes, check_whole
from kernels.methods.weights import Alibi, Weights


@dataclass(frozen=True)
class TopK(Weights):
    """Exact ALiBi on the keys that matter most to each row: its own key, the sinks, the near field,
    and of all others the `keys` - 1 whose ``q.k * scale - m |i - j|`` is highest.

    No other set of as many keys that contains the fixed ones holds more of the row's attention. It
    saves nothing itself, as all scores are computed. With `keys` no smaller than the context it is exact ALiBi.

    slopes: (H,).
    keys: keys that a row sees besides sinks and near field, its own included.
    sinks, near: as in `Weights`; they are never chosen, as they are visible anyway.
    """

    slopes: torch.Tensor
    keys: int
    sinks: int = 0
    near: int = 0

    by_score = True

    def __post_init__(self):
        object.__setattr__(self, "slopes", check_slopes(self.slopes))
        object.__setattr__(self, "keys", check_whole("keys", self.keys, 1))
        object.__setattr__(self, "sinks", check_whole("sinks", self.sinks, 0))
        object.__setattr__(self, "near", check_whole("near", self.near, 0))

    def log_dense(self, rows, columns):
        """The log-weights of the keys among which `keep` chooses."""
        return Alibi(self.slopes).log_dense(rows, columns)

    def reach(self, heads, rows):
        raise ValueError("TopK has no reach: which keys a row sees depends on its scores.")

    def log_piece(self, heads, rows, first, width, causal):
        raise ValueError("TopK has no weights before its scores are known.")

    def keep(self, weighed, rows, columns):
        always = (rows[:, None] - columns).abs() < max(self.near, 1)
        always |= columns < self.sinks
        count = min(self.keys - 1, len(columns))
        best = weighed.masked_fill(always, -math.inf).topk(count, dim=-1).indices
        chosen = always.expand(weighed.shape).scatter(-1, best, True)
        return weighed.masked_fill(~chosen, -math.inf)

    def matrix(self, tokens):
        raise ValueError("TopK has no matrix of weights: which pairs it visits depends on the scores.")

    def pairs(self, tokens):
        rows = torch.arange(tokens)
        nearest = torch.minimum(rows, torch.tensor(max(self.near, 1) - 1))
        given = nearest + (rows - nearest).clamp_max(self.sinks)
        chosen = (rows - given).clamp_max(self.keys - 1)
        return (given + chosen).sum().expand(self.heads)
