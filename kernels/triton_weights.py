"""What the Triton kernels share: how they weigh a tile's pairs by `kernels.tables`, and how they are launched."""

import torch
import triton
import triton.language as tl

from kernels.tables import Tables

HIDDEN = tl.constexpr(-1.0e30)  # score of a pair that is not visited: finite, so that no difference of scores is NaN
# arguments whose value changes nothing in the code: no compilation of its own for an even length, or a single head
ANY = ("heads", "group", "queries", "keys", "reach", "masks", "number", "tokens", "sinks", "splits")
# whether Triton runs kernels in its interpreter (TRITON_INTERPRET=1 when they are imported)
INTERPRETED = triton.knobs.runtime.interpret
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def popcount(x, ASM: tl.constexpr):
    """Bits set in each int32: one instruction on the device; arithmetic in the interpreter, which knows no assembly."""
    if ASM:
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
def holding(corner, positions, WORD: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr):
    """Word of masks whose pivot block starts at or before each position (STARTING), or ends after it. `corner`: the
    starts, then the ends, in whole words."""
    lane = tl.arange(0, 32)
    one = tl.full([32], 1, tl.int32) << lane
    if STARTING:
        held = tl.load(corner + WORD * 32 + lane)[None, :] <= positions[:, None]
    else:
        held = tl.load(corner + ((MASKS + 31) // 32 + WORD) * 32 + lane)[None, :] > positions[:, None]
    return tl.sum(tl.where(held, one[None, :], 0), 1)


@triton.jit
def words_of(corner, positions, LAW: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr):
    """The two words of `holding` where the law counts and there are so many masks; else anything of that shape."""
    word, word_2 = positions, positions
    if counts(LAW):
        word = holding(corner, positions, 0, MASKS, STARTING)
        if MASKS > 32:
            word_2 = holding(corner, positions, 1, MASKS, STARTING)
    return word, word_2


@triton.jit
def weights_of(head, tile, Slope, Bias, Share, Corners, tiles, reach, LAW: tl.constexpr, MASKS: tl.constexpr):
    """Of a head's tables, so many `tiles` long: slope, pointers to bias and shares, and to the corners of a tile."""
    slope = 0.0
    if (LAW == "linear") or (LAW == "rb"):
        slope = tl.load(Slope + head)
    words: tl.constexpr = (MASKS + 31) // 32
    corner = Corners + (head * tiles + tile) * (4 * words * 32)
    return slope, Bias + head * reach, Share + head * (words * 32), corner


@triton.jit
def weigh(word, share, LAW: tl.constexpr, MASKS: tl.constexpr, WORD: tl.constexpr, ASM: tl.constexpr):
    """S times the weight of each pair from the word of masks that hold it: their number, or the sum of their shares."""
    if LAW == "count":
        return popcount(word, ASM).to(tl.float32)
    total = tl.zeros(word.shape, tl.float32)
    for s in range(min(32, MASKS - WORD * 32)):
        total += ((word >> s) & 1).to(tl.float32) * tl.load(share + WORD * 32 + s)
    return total


@triton.jit
def weigh_near(
    planes, step, rows, columns, share,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """S times the weight of pairs of one tile: `planes` points to the head's positions, planes are `step` apart."""
    WORDS: tl.constexpr = (MASKS + 31) // 32
    DEPTH: tl.constexpr = tile_depth(TILE)
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for word in tl.static_range(WORDS):
        apart = tl.zeros([rows.shape[0], columns.shape[0]], tl.int32)
        for k in tl.static_range(DEPTH):
            plane = planes + (word * DEPTH + k) * step
            apart = apart | (tl.load(plane + rows)[:, None] ^ tl.load(plane + columns)[None, :])
        if LAW == "count":
            total += (min(32, MASKS - word * 32) - popcount(apart, ASM)).to(tl.float32)
        else:
            total += weigh(~apart, share, LAW, MASKS, word, ASM)
    return total


@triton.jit
def between(rows, columns, i0, j0):
    """columns - rows of tiles that begin at i0 and j0, as (rows, columns) float32: no rounding up to 2^24 tokens."""
    across = (columns - j0).to(tl.float32) + (j0 - i0).to(tl.float32)
    return across[None, :] - (rows - i0).to(tl.float32)[:, None]


@triton.jit
def by_distance(score, rows, columns, seen, slope, bias, i0, j0, LAW: tl.constexpr, MASKS: tl.constexpr):
    """For weights that depend on the distance: base-2 scores, HIDDEN unless `seen`, and the factor of their
    exponentials if the law `scales`; otherwise the scores hold the weight."""
    if LAW == "distance":
        gap = tl.abs(rows[:, None] - columns[None, :])
        return score + tl.load(bias + gap, mask=seen, other=HIDDEN), score
    ahead = tl.abs(between(rows, columns, i0, j0))
    if LAW == "linear":
        return tl.where(seen, score - slope * ahead, HIDDEN), score
    # L / (1 - (1 - L)^S), the power by repeated squaring of 1 - L in a form that keeps small L exact
    like = tl.maximum(tl.exp2(-slope * ahead), 1e-30)
    power = like
    covered = tl.zeros_like(like)
    for bit in tl.static_range(MASKS.bit_length()):
        if (MASKS >> bit) % 2 == 1:
            covered = covered + power - covered * power
        power = power * (2.0 - power)
    return tl.where(seen, score, HIDDEN), like / covered


@triton.jit
def near(
    score, a, b, seen, slope, bias, planes, step, share, begin,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scores (a, b) of one tile that begins at `begin`, HIDDEN unless `seen`, and factors as of `by_distance`."""
    if counts(LAW):
        factor = tl.where(seen, weigh_near(planes, step, a, b, share, LAW, MASKS, TILE, ASM), 0.0)
        return tl.where(factor > 0, score, HIDDEN), factor
    return by_distance(score, a, b, seen, slope, bias, begin, begin, LAW, MASKS)


@triton.jit
def far(
    score, a, b, seen, slope, bias, share, a_word, a_word_2, corner, a0, b0,
    LAW: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr, BOUND: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The same for tiles that begin at a0 and b0. `a_word`, `a_word_2`: words of masks that hold a and the pivot whose
    `corner` it is; those that hold b are `starting` or else `ending`. Counts need `seen` only if BOUND."""
    if counts(LAW):
        factor = weigh(a_word[:, None] & holding(corner, b, 0, MASKS, STARTING)[None, :], share, LAW, MASKS, 0, ASM)
        if MASKS > 32:
            word = a_word_2[:, None] & holding(corner, b, 1, MASKS, STARTING)[None, :]
            factor += weigh(word, share, LAW, MASKS, 1, ASM)
        if BOUND:
            factor = tl.where(seen, factor, 0.0)
        return tl.where(factor > 0, score, HIDDEN), factor
    return by_distance(score, a, b, seen, slope, bias, a0, b0, LAW, MASKS)


@triton.jit
def to_sinks(score, ahead, seen, slope, LAW: tl.constexpr, MASKS: tl.constexpr):
    """Scores of pairs with sinks `ahead` tokens away and their factors, as of `by_distance`: the weight is ALiBi's
    whatever the law. Counts are S times a weight, and so is this factor."""
    factor = tl.full(score.shape, 1.0, tl.float32)
    if counts(LAW):
        factor = tl.full(score.shape, MASKS * 1.0, tl.float32)
    return tl.where(seen, score - slope * tl.abs(ahead), HIDDEN), factor


@triton.constexpr_function
def counts(law):
    """Whether the masks that hold a pair are looked at one by one."""
    return law in ("count", "sum")


@triton.constexpr_function
def bounded(sinks, causal):
    """Whether counts must leave out the sinks by `seen`: no block of a pivot begins among them in causal tables."""
    return sinks > 0 and not causal


@triton.constexpr_function
def scales(law):
    """Whether the weight is a factor of the exponential, not a part of the score."""
    return law in ("count", "sum", "rb")


@triton.constexpr_function
def sink_step(sinks, step):
    """How many sinks are taken at a time: a product takes 16 at least, and fewer registers than a whole step."""
    return min(step, max(16, triton.next_power_of_2(sinks)))


@triton.constexpr_function
def tile_depth(tile):
    return max(1, tile.bit_length() - 1)


def pointers(tables: Tables) -> list[torch.Tensor]:
    """The tables in the order in which the kernels take them; one that the law does not need is never read."""
    named = ("order", "first", "last", "slope", "bias", "planes", "corners", "share")
    return [getattr(tables, name) if getattr(tables, name).numel() else tables.first for name in named]


def on_device(numbers: list[int], q: torch.Tensor) -> torch.Tensor:
    """Small numbers as int32 where q is. Equal ones are filled in there: a copy from the host would stall the stream
    and end the capture of a CUDA graph."""
    if len(set(numbers)) == 1:
        return torch.full((len(numbers),), numbers[0], dtype=torch.int32, device=q.device)
    return torch.tensor(numbers, dtype=torch.int32, device=q.device)


def clear_padding(out: torch.Tensor, lse: torch.Tensor, starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse with the rows of padding set to 0 and -inf: they belong to no tile, so no kernel writes them."""
    for sequence, start in enumerate(starts):
        if start < 0:
            out[sequence, :, :-start] = 0.0
            lse[sequence, :, :-start] = -torch.inf
    return out, lse


def constants(law: str, masks: int, sinks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int) -> dict:
    """What the kernels over tiles are compiled for, and how they are launched."""
    # 4 warps, two programs to a multiprocessor, unless a program wants more registers than that leaves
    many = tile == 64 and (not causal or law in ("distance", "sum") or (law == "count" and masks > 32))
    return {
        "LAW": law,
        "CAUSAL": causal,
        "MASKS": 0 if law in ("linear", "distance") else masks,
        "SINKS": sinks,
        "DIM": dim,
        "WIDE": width_of(dim),
        "TILE": tile,
        "PRECISION": precision_of(dtype),
        "ASM": not INTERPRETED,
        "num_warps": 8 if many or dtype == torch.float32 else 4,
        "num_stages": 2,
        "enable_fp_fusion": True,  # the default changes with Triton's version
    }


def width_of(dim: int) -> int:
    """Columns of a tile that holds head dimension `dim`: tiles are powers of two, and a product takes at least 16."""
    return max(16, triton.next_power_of_2(dim))


def precision_of(dtype: torch.dtype) -> str:
    """How products of this type are computed: TF32 would keep 10 bits of a float32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def tile_of(dtype: torch.dtype, capability: int) -> int:
    """Rows of a tile: 64 are what wgmma wants; before `capability` 9 they would spill, and of float32 not fit into
    shared memory twice. The interpreter takes small tiles too, so that short tests meet many of them."""
    return 64 if capability >= 9 and dtype != torch.float32 else 32
