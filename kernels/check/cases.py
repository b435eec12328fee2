"""The one matrix of cases on which every kernel is compared with the oracle: a pairwise selection,
and edge cases by hand."""

import itertools
from dataclasses import dataclass, replace

import torch

from kernels.common.dtypes import dtype_name
from kernels.methods.plsh import PositionalLSH
from kernels.methods.slopes import alibi_slopes
from kernels.methods.weights import Alibi, Weights, Window

# weights, with the sampler if they draw masks
RULES = [
    "alibi", "window", "count/gamma", "rb/gamma", "exact/gamma", "count/systematic", "rb/systematic",
    "exact/systematic", "count/fixed", "exact/fixed",
]  # fmt: skip
# (keys, queries, slot of the first query): odd lengths, one token, decoding, few queries at the
# end, a middle chunk
SHAPES = [(1, 1, None), (129, 129, None), (203, 203, None), (187, 1, None), (150, 7, None), (201, 70, 64)]
FACTORS: dict[str, list] = {
    "rule": RULES,
    "masks": [1, 4, 16, 33],
    "heads": [(1, 1), (6, 2), (8, 8), (12, 1), (40, 8)],  # query heads, key heads
    "slopes": ["press", "spread", "flat"],
    "shape": SHAPES,
    "padding": ["none", "left", "all"],
    "dtype": [torch.float32, torch.bfloat16, torch.float16],
    "causal": [True, False],
    "layout": ["plain", "transposed", "poisoned"],
    "sinks": [0, 3, 140],  # 140: a row may lie among the sinks, and they fill more than one tile
    "near": [0, 16, 64, 100],  # within a tile, a tile of 64, and beyond the tile before it
}


@dataclass(frozen=True)
class Case:
    """One call of `attend`. `padding`: "left" pads the sequences of a batch unequally, "all" makes
    one of them padding only."""

    rule: str = "count/gamma"
    masks: int = 16
    heads: tuple[int, int] = (8, 8)
    slopes: str = "press"
    shape: tuple[int, int, int | None] = (203, 203, None)
    padding: str = "none"
    dtype: torch.dtype = torch.float32
    causal: bool = True
    layout: str = "plain"
    dim: int = 16
    sinks: int = 0  # not used by rule "alibi", nor is `near`
    near: int = 0

    @property
    def id(self) -> str:
        """Name of the case: all factors but the head dimension."""
        keys, queries, offset = self.shape
        shape = f"{queries}of{keys}" + ("" if offset is None else f"at{offset}")
        parts = [self.rule, f"S{self.masks}", f"{self.heads[0]}x{self.heads[1]}", self.slopes, shape, self.padding]
        parts += [dtype_name(self.dtype), "causal" if self.causal else "both", self.layout]
        parts += [f"sinks{self.sinks}"] * (self.sinks > 0) + [f"near{self.near}"] * (self.near > 0)
        return "-".join(parts).replace("/", ".")

    def slope_list(self) -> torch.Tensor:
        """Slopes of the query heads, (H,) float64."""
        heads = self.heads[0]
        if self.slopes == "press":
            return alibi_slopes(heads)
        if self.slopes == "steep":  # no head reaches far
            return torch.logspace(0, -5, heads, base=2.0, dtype=torch.float64)
        if self.slopes == "flat":
            return torch.full((heads,), 2.0**-16, dtype=torch.float64)
        return torch.logspace(3, -16, heads, base=2.0, dtype=torch.float64)  # the first is 8

    def weights(self) -> Weights:
        """The weights of the rule, with a fixed key of the draw."""
        slopes = self.slope_list()
        if self.rule == "alibi":
            return Alibi(slopes)
        if self.rule == "window":
            return Window(slopes, 3.0, self.sinks, self.near)
        kind, sampler = self.rule.split("/")
        return PositionalLSH.draw(
            slopes,
            self.masks,
            seed=11,
            draw=2,
            layer=3,
            sampler=sampler,
            weights=kind,
            sinks=self.sinks,
            near=self.near,
        )

    def pads(self) -> torch.Tensor | None:
        """Padding slots of each sequence, (batch,); None without padding."""
        keys = self.shape[0]
        pads = {"none": None, "left": [0, keys // 2, keys // 5], "all": [keys, keys // 7]}[self.padding]
        return None if pads is None else torch.tensor(pads)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        pads = self.pads()
        return 1 if pads is None else len(pads)

    @property
    def begin(self) -> int:
        """Slot of the first query."""
        keys, queries, offset = self.shape
        return keys - queries if offset is None else offset

    def tensor(self, heads: int, tokens: int, generator: torch.Generator, device: str = "cpu") -> torch.Tensor:
        """Standard normal (batch, heads, tokens, dim) in the case's dtype and memory layout:
        "poisoned" is an odd slice of a larger memory of NaN.

        Args:
            heads: number of heads, of q or of k.
            tokens: number of rows of each head.
            generator: source of the numbers, on the CPU, so that they are the same on every device.
            device: of the result.
        """
        x = torch.randn(self.batch, heads, tokens, self.dim, generator=generator).to(device, self.dtype)
        if self.layout == "transposed":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if self.layout == "plain":
            return x
        memory = torch.full(
            (*x.shape[:1], heads + 2, tokens + 5, self.dim + 3), torch.nan, dtype=x.dtype, device=device
        )
        view = memory[:, 1:-1, 2:-3, 3:]
        view.copy_(x)
        return view

    def inputs(self, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v. Padding holds NaN, so that reading it shows in the results."""
        generator = torch.Generator().manual_seed(5)
        (keys, queries, _), (heads, kv_heads) = self.shape, self.heads
        q, k, v = (
            self.tensor(h, n, generator, device) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
        )
        for i, real in enumerate(self.real()):
            for x, slots in zip((q, k, v), real, strict=True):
                x[i, :, : slots.start] = torch.nan
        return q, k, v

    def real(self) -> list[tuple[slice, slice, slice]]:
        """The slots of q, k and v that hold real tokens, for each sequence."""
        pads = self.pads()
        real = []
        for pad in [0] if pads is None else pads.tolist():
            queries, keys = slice(min(max(0, pad - self.begin), self.shape[1]), None), slice(pad, None)
            real.append((queries, keys, keys))
        return real

    def options(self) -> dict:
        """Options of `kernels.attend`."""
        pads, slot = self.pads(), self.shape[2]
        # the shape counts slots, the kernels' offset counts tokens
        offset = slot if pads is None or slot is None else slot - pads
        return {"causal": self.causal, "q_offset": offset, "padding": pads}


def pairwise(factors: dict[str, list]) -> list[Case]:
    """Pairwise coverage: cases in which every level of each factor meets every level of every other
    factor. Greedy and deterministic."""
    names = list(factors)
    missing = {
        ((a, x), (b, y)): None for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    }
    cases: list[Case] = []
    while missing:
        chosen = dict(next(iter(missing)))
        for turn, name in enumerate(names):
            if name in chosen:
                continue

            start = (len(cases) + turn) % len(factors[name])  # ties go to a different level each time
            gain = {
                level: sum(_pair(names, (name, level), other) in missing for other in chosen.items())
                for level in factors[name][start:] + factors[name][:start]
            }
            chosen[name] = max(gain, key=gain.__getitem__)
        for pair in itertools.combinations(chosen.items(), 2):
            missing.pop(_pair(names, *pair), None)
        cases.append(Case(**chosen))
    return cases


def _pair(names: list[str], left: tuple, right: tuple) -> tuple:
    return tuple(sorted((left, right), key=lambda item: names.index(item[0])))


# long enough for every chunk size of kernel sdpa, and for windows that start inside, at and before
# the first token of a chunk
_LONG = Case(heads=(3, 1), shape=(1501, 1501, None), slopes="spread")
EDGES = [replace(_LONG, rule=rule) for rule in ("alibi", "window", "count/gamma", "rb/systematic", "exact/gamma")] + [
    replace(_LONG, rule="count/gamma", causal=False),
    replace(_LONG, rule="count/systematic", layout="poisoned", padding="left"),
    replace(_LONG, rule="window", shape=(1501, 333, 700), causal=False, dtype=torch.bfloat16),
    replace(_LONG, rule="count/gamma", shape=(1501, 65, 1436), layout="poisoned"),
    replace(_LONG, rule="rb/gamma", shape=(1501, 64, None), layout="transposed"),
    Case(rule="count/gamma", shape=(128, 128, None), heads=(2, 2), dtype=torch.float64),
]
