"""The weights of Positional LSH: on the union of S random masks."""

import math
from dataclasses import dataclass, field, replace

import torch

from kernels.methods.checks import check_slopes, check_whole
from kernels.methods.cost import log_coverage
from kernels.methods.laws import Kind, Law
from kernels.methods.masks import Masks, draw_masks
from kernels.methods.samplers import sampler_of
from kernels.methods.weights import Alibi, Weights, by_distance

UNION_WEIGHTS = ("count", "rb", "exact")
MANY_MASKS = 1024  # from here on a piece's counts are summed block by block


@dataclass(frozen=True)
class PositionalLSH(Weights):
    """Weights on the union of S random masks (arXiv 2605.09472). They are unbiased for ALiBi's L =
    exp(-m|i-j|) with the sampler "gamma" or "systematic", except for "exact". `weights` is one of

    * "count": ``(1/S) sum_s M_s``, the paper's estimate; with "systematic", each mask has a weight
      of its own;
    * "rb": ``L / P(covered)`` on the union: for independent masks the conditional expectation of
      the count (Rao-Blackwell), unbiased on the same pairs with far less variance;
    * "exact": L on the union, a window of random reach; biased, since nothing compensates for the
      pairs that the union misses.

    Sinks and the near field have the weight L, covered or not. Under "count" the near pairs are then
    exact, not estimated; beyond them the estimate is as unbiased as without.
    """

    slopes: torch.Tensor
    masks: Masks
    sampler: str
    weights: str
    sinks: int = 0
    near: int = 0
    # computed once: compiled code cannot read numbers of a tensor on the host
    span: int = field(init=False, repr=False, compare=False)
    alike: bool = field(init=False, repr=False, compare=False)  # all masks have the same weight

    def __post_init__(self):
        object.__setattr__(self, "span", max(self.masks.span, self.near - 1))
        object.__setattr__(self, "alike", bool((self.masks.log_weight == 0).all()))

    @classmethod
    def draw(
        cls,
        slopes: torch.Tensor,
        masks: int,
        *,
        seed: int,
        draw: int = 0,
        layer: int = 0,
        sampler: str = "gamma",
        weights: str = "count",
        sinks: int = 0,
        align: int = 0,
        near: int = 0,
        share_heads: bool = False,
    ) -> "PositionalLSH":
        """Draws masks for each head: a pure function of (seed, draw, layer, head) and the options.

        Args:
            slopes: (H,), in 1/tokens.
            masks: number of masks per head.
            seed, draw, layer, sampler: as in `kernels.methods.masks.draw_masks`.
            weights: "count", "rb" or "exact".
            sinks: number of first tokens that every row sees.
            align: tokens per cell of the grid for the blocks of flat heads (`draw_masks`), 0 for
                none. The count is then one number for each pair of cells, which any block-sparse
                kernel can use, and its expectation differs from L by at most
                `kernels.methods.cost.align_bias`.
            near: number of nearest keys that every row sees with the weight L, itself included.
            share_heads: as in `draw_masks`.

        Raises:
            ValueError: for slopes that are not positive, masks < 1, sinks or near < 0, an unknown sampler
                or weights, "rb" with a sampler without `log_coverage`, and `align` with masks that
                are not random or with weights other than "count".
        """
        slopes = check_slopes(slopes)
        if weights not in UNION_WEIGHTS:
            raise ValueError(f"Unknown weights {weights!r}: choose one of {', '.join(UNION_WEIGHTS)}.")
        if align and weights != "count":
            raise ValueError(
                f"A grid is for counts: weights {weights!r} know masks off the grid only. Use weights='count' with "
                "align, or align=0."
            )
        key = {"seed": seed, "draw": draw, "layer": layer}
        mask_set = draw_masks(slopes, masks, **key, sampler=sampler, align=align, share_heads=share_heads)
        if weights == "rb":
            log_coverage(torch.zeros(1), masks, sampler)  # raises for samplers without a formula
        return cls(slopes, mask_set, sampler, weights, check_whole("sinks", sinks, 0), check_whole("near", near, 0))

    @classmethod
    def example(cls, slopes, kind):
        options = {"sampler": kind.sampler, "weights": kind.weights, "sinks": kind.sinks}
        return cls.draw(slopes, kind.masks, seed=0, **options, align=kind.align, near=kind.near)

    def __repr__(self) -> str:
        options = f"sampler={self.sampler!r}, weights={self.weights!r}, sinks={self.sinks}"
        return f"PositionalLSH({self.heads} heads, {self.count} masks, {options})"

    @property
    def count(self) -> int:
        return self.masks.width.shape[1]

    @property
    def law(self) -> Law:
        if self.weights == "exact":
            return Law.LINEAR
        if self.weights == "rb":
            return Law.RAO_BLACKWELL if sampler_of(self.sampler).independent else Law.DISTANCE
        return Law.COUNT if self.alike else Law.SUM

    @property
    def kind(self) -> Kind:
        align = 0 if self.masks.grid is None else int(self.masks.grid[:, 0].max())
        return Kind("plsh", self.weights, self.sampler, self.count, self.sinks, align, self.near)

    def pack(self):
        width, grid = self.masks.width, self.masks.grid
        columns = width, self.masks.shift, self.masks.log_weight.exp(), width.reciprocal()
        return torch.cat([self.slopes[:, None], *columns, *([] if grid is None else [grid])], 1)

    def mask_set(self) -> Masks:
        return self.masks

    @property
    def numbers_per_row(self) -> int:
        return self.count

    def log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """log w of a covered pair for "rb" and "exact": distance (N,) or (G, N) tokens -> (G, N)
        float64."""
        t = self.slopes[heads.cpu()].to(distance.device)[:, None] * distance.double()
        return -t if self.weights == "exact" else -t - log_coverage(t, self.count, self.sampler)

    def halves(self) -> tuple["PositionalLSH", "PositionalLSH"]:
        """The first and the second half of the masks, each with the weights of S / 2 masks. Raises
        ValueError for an odd number of masks, for masks that are not independent, and for "exact",
        whose expectation depends on the number of masks."""
        if not sampler_of(self.sampler).independent:
            raise ValueError(
                "return_spread=True needs independent masks, and those of sampler "
                f"{self.sampler!r} are drawn together: use sampler='gamma'."
            )
        if self.weights == "exact":
            raise ValueError(
                "return_spread=True compares two estimates of the same weights, and weights='exact' are none, but a "
                "window of random reach: use weights='count' or 'rb'."
            )
        if self.count % 2:
            raise ValueError(
                f"return_spread=True splits the masks into two halves, and {self.count} is odd: draw "
                f"{self.count + 1} masks."
            )
        middle = self.count // 2
        first, second = self.masks.some(slice(None, middle)), self.masks.some(slice(middle, None))
        return replace(self, masks=first), replace(self, masks=second)

    def log_dense(self, rows, columns):
        heads = torch.arange(self.heads)
        row_bucket = self.masks.bucket(heads, rows[None].expand(self.heads, -1))[:, :, None, :]
        column_bucket = self.masks.bucket(heads, columns[None].expand(self.heads, -1))[:, None, :, :]
        mask_weight = self.masks.log_weight.to(rows.device)[:, :, None, None].exp()
        union = torch.zeros(self.heads, len(rows), len(columns), dtype=torch.bool, device=rows.device)
        total = torch.zeros(union.shape, dtype=torch.float64, device=rows.device)
        for s in range(self.count):  # one mask at a time: all at once would take S times the memory
            shared = row_bucket[..., s] == column_bucket[..., s]
            union |= shared
            total += shared * mask_weight[:, s]
        if self.weights == "count":
            log_w = (total / self.count).log_()
        else:
            distance = (rows[:, None] - columns[None, :]).abs()
            log_w = self.log_distance(heads, distance.reshape(-1)).reshape(self.heads, *distance.shape)
            log_w.masked_fill_(~union, -math.inf)
        exact = (columns < self.sinks) | ((rows[:, None] - columns).abs() < self.near)
        return torch.where(exact, Alibi(self.slopes).log_dense(rows, columns), log_w)

    def reach(self, heads, rows):
        first, last = self.masks.starts(heads, rows).amin(-1), self.masks.ends(heads, rows).amax(-1) - 1
        if self.near:
            first, last = torch.minimum(first, rows - self.near + 1), torch.maximum(last, rows + self.near - 1)
        return first.clamp_min(self.sinks), last

    def log_piece(self, heads, rows, first, width, causal):
        if self.weights == "count" and self.alike and self.count >= MANY_MASKS:
            log_w = torch.stack([self._squares(*one, width, causal) for one in zip(heads, rows, first, strict=True)])
            return self._with_near(log_w, heads, rows, first, causal)
        start = self.masks.starts(heads, rows).clamp_min_(self.sinks)
        end = None if causal else self.masks.ends(heads, rows)
        if self.weights == "count":
            log_w = self._runs(heads, rows, start, end, first, width)
            return self._with_near(log_w, heads, rows, first, causal)
        log_w = by_distance(self.log_distance, heads, rows, first, width, causal)
        columns = torch.arange(width, device=rows.device, dtype=torch.int32)
        # a block of a very flat slope ends beyond int32
        outside = columns < (start.amin(-1, keepdim=True) - first[:, None, None]).clamp_(0, width).int()
        if end is not None:
            outside |= columns >= (end.amax(-1, keepdim=True) - first[:, None, None]).clamp_(0, width).int()
        return self._with_near(log_w.masked_fill_(outside, -math.inf), heads, rows, first, causal)

    def _squares(self, head, rows, first, width, causal):
        """The log of the count in a piece of one head: each block is a square of ones, of which a
        table of differences takes the four corners. There are far fewer blocks than rows times masks,
        which `_runs` sorts. Arguments as in `log_piece`, without the dimension of the pieces."""
        length, row, column = len(rows), int(rows[0]), int(first)
        edges = self.masks.edges(head, rows[0], rows[-1])
        begin, end = edges[:, 0], edges[:, 1]
        top, bottom = ((x - row).clamp(0, length) * (width + 1) for x in (begin, end))
        left, right = ((x - column).clamp(0, width) for x in (begin, end))
        size = (length + 1) * (width + 1)
        corners = [torch.bincount(a + b, minlength=size) for a in (top, bottom) for b in (left, right)]
        table = (corners[0] - corners[1] - corners[2] + corners[3]).view(length + 1, width + 1)
        count = table.cumsum(0).cumsum_(1)[:length, :width]
        columns = torch.arange(column, column + width, device=rows.device)
        hidden = (columns < self.sinks) | ((columns > rows[:, None]) if causal else False)
        return count.double().div_(self.count).log_().float().masked_fill_(hidden, -math.inf)

    def _with_near(self, log_w, heads, rows, first, causal):
        """A piece (`log_piece`) with the weight L at the distances of the near field."""
        if not self.near:
            return log_w

        def near_field(heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
            bias = -self.slopes[heads.cpu()].to(distance.device)[:, None] * distance
            return bias.masked_fill_(distance >= self.near, math.nan)

        exact = by_distance(near_field, heads, rows, first, log_w.shape[2], causal, self.sinks)
        return torch.where(exact.isnan(), log_w, exact)

    def _runs(self, heads, rows, start, end, first, width):
        """The log of the count, which is constant along a row between block edges: writes each run
        once instead of comparing S masks with every pair. Sorted starts add a mask's weight, sorted
        ends subtract it; in causal pieces the row itself ends every block."""
        groups, length, count = start.shape
        device = rows.device
        offset = first[:, None, None]
        weight = self.masks.log_weight[heads.cpu()].exp().to(device)[:, None, :].expand(-1, length, -1)
        if end is None:
            edges, order = (start - offset).clamp_(0, width).int().sort(-1)
            # a row among the sinks ends before the first column after them
            stop = torch.maximum((rows[..., None] + 1 - offset).clamp_(0, width).int(), edges[..., -1:])
            if self.alike:  # the sorted order does not matter
                value = torch.arange(1, count + 1, device=device, dtype=torch.float64).expand(start.shape)
            else:
                value = weight.gather(-1, order).cumsum(-1)
        else:
            edges, order = torch.cat([start, end], -1).sub_(offset).clamp_(0, width).int().sort(-1)
            sign = torch.ones(2 * count, device=device)
            sign[count:] = -1.0
            value = (torch.cat([weight, weight], -1) * sign).gather(-1, order).cumsum(-1)
            # cumsum leaves rounding errors where all masks have ended: an integer count decides
            # which columns are covered
            covered = sign.expand(groups, length, -1).gather(-1, order).cumsum(-1) > 0
            value = value.masked_fill_(~covered, 0.0)
            stop = torch.full_like(edges[..., :1], width)
        nothing = torch.full((groups, length, 1), -math.inf, device=device)
        values = torch.cat([nothing, value.div(count).log_().float(), nothing], -1)
        zero = torch.zeros_like(stop)
        bounds = torch.cat([zero, edges, stop, torch.full_like(stop, width)], -1)
        runs = torch.repeat_interleave(
            values.reshape(-1), bounds.diff(dim=-1).reshape(-1), output_size=groups * length * width
        )
        return runs.view(groups, length, width)
