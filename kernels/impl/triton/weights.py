"""What the Triton kernels share: how they weigh a tile's pairs by `kernels.impl.tables`."""

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1.0e30)  # score of a pair that is not visited: finite, so that no difference of scores is NaN
# arguments whose value changes nothing in the code: no compilation of its own for an even length,
# or a single head
ANY = ("heads", "group", "queries", "keys", "reach", "masks", "number", "tokens", "sinks", "splits")
# whether Triton runs kernels in its interpreter (TRITON_INTERPRET=1 when they are imported)
INTERPRETED = triton.knobs.runtime.interpret
LN2 = tl.constexpr(0.6931471805599453)
SINK_STEP = tl.constexpr(16)  # sinks at a time: the least that a product takes, since more would take more registers


@triton.jit
def popcount(x, ASM: tl.constexpr):
    """Bits set in each int32: one instruction on the device; arithmetic in the interpreter, which
    knows no assembly."""
    if ASM:
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
def gather(table, index, ASM: tl.constexpr):
    """Numbers (float32) of a table at each index, read where they are used: the pipeliner would
    copy what `tl.load` reads into shared memory beforehand, for every pair of a tile."""
    if ASM:
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [table + index], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.load(table + index)


@triton.jit
def holding(corner, positions, WORD: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr):
    """Word of masks whose pivot block starts at or before each position (STARTING), or ends after
    it. `corner`: the starts, then the ends."""
    lane = WORD * 32 + tl.arange(0, 32)
    one = tl.full([32], 1, tl.int32) << tl.arange(0, 32)
    if STARTING:
        held = tl.load(corner + lane, mask=lane < MASKS, other=2147483647)[None, :] <= positions[:, None]
    else:
        held = tl.load(corner + MASKS + lane, mask=lane < MASKS, other=0)[None, :] > positions[:, None]
    return tl.sum(tl.where(held, one[None, :], 0), 1)


@triton.jit
def words_of(corner, positions, LAW: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr):
    """The two words of `holding` where the law counts and there are so many masks; else anything of
    that shape."""
    word, word_2 = positions, positions
    if counts(LAW):
        word = holding(corner, positions, 0, MASKS, STARTING)
        if MASKS > 32:
            word_2 = holding(corner, positions, 1, MASKS, STARTING)
    return word, word_2


@triton.jit
def weights_of(
    head, tile, Slope, Bias, Share, Planes, Corners, tiles, reach,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of a head's tables, so many `tiles` long: slope, pointers to bias and shares, and to planes
    and corners of a tile."""
    slope = 0.0
    if (LAW == "linear") or (LAW == "rb"):
        slope = tl.load(Slope + head)
    words: tl.constexpr = (MASKS + 31) // 32
    at = head * tiles + tile
    planes, corner = Planes + at * (words * tile_depth(TILE) * TILE), Corners + at * (4 * MASKS)
    return slope, Bias + head * reach, Share + head * (words * 4 * 256), planes, corner


@triton.jit
def weigh(word, share, LAW: tl.constexpr, MASKS: tl.constexpr, WORD: tl.constexpr, ASM: tl.constexpr):
    """S times the weight of each pair from the word of masks that hold it: their number, or the sum
    of their shares."""
    if LAW == "count":
        return popcount(word, ASM).to(tl.float32)
    total = tl.zeros(word.shape, tl.float32)
    for byte in tl.static_range((min(32, MASKS - WORD * 32) + 7) // 8):
        total += gather(share + (WORD * 4 + byte) * 256, (word >> (8 * byte)) & 255, ASM)
    return total


@triton.jit
def weigh_near(
    planes, rows, columns, share,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """S times the weight of pairs of one tile, `rows` and `columns` counted within it, `planes`
    where its own begin."""
    WORDS: tl.constexpr = (MASKS + 31) // 32
    DEPTH: tl.constexpr = tile_depth(TILE)
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for word in tl.static_range(WORDS):
        apart = tl.zeros([rows.shape[0], columns.shape[0]], tl.int32)
        for k in tl.static_range(DEPTH):
            plane = planes + (word * DEPTH + k) * TILE
            apart = apart | (tl.load(plane + rows)[:, None] ^ tl.load(plane + columns)[None, :])
        if LAW == "count":
            total += (min(32, MASKS - word * 32) - popcount(apart, ASM)).to(tl.float32)
        else:
            total += weigh(~apart, share, LAW, MASKS, word, ASM)
    return total


@triton.jit
def between(rows, columns, i0, j0):
    """columns - rows of tiles that begin at i0 and j0, as (rows, columns) float32: no rounding up
    to 2^24 tokens."""
    across = (columns - j0).to(tl.float32) + (j0 - i0).to(tl.float32)
    return across[None, :] - (rows - i0).to(tl.float32)[:, None]


@triton.jit
def by_distance(score, rows, columns, seen, slope, bias, i0, j0, LAW: tl.constexpr, MASKS: tl.constexpr):
    """For weights that depend on the distance: base-2 scores, HIDDEN unless `seen`, and the factor
    of their exponentials if the law `scales`; otherwise the scores hold the weight."""
    if LAW == "distance":
        gap = tl.abs(rows[:, None] - columns[None, :])
        return score + tl.load(bias + gap, mask=seen, other=HIDDEN), score
    ahead = tl.abs(between(rows, columns, i0, j0))
    if LAW == "linear":
        return tl.where(seen, score - slope * ahead, HIDDEN), score
    if MASKS == 1:  # L / L
        return tl.where(seen, score, HIDDEN), tl.full(score.shape, 1.0, tl.float32)
    # L / (1 - (1 - L)^S), the power by repeated squaring of 1 - L in a form that keeps small L
    # exact
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
    score, a, b, seen, slope, bias, planes, share, begin,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scores (a, b) of one tile that begins at `begin`, HIDDEN unless `seen`, and factors as of
    `by_distance`."""
    if counts(LAW):
        factor = tl.where(seen, weigh_near(planes, a - begin, b - begin, share, LAW, MASKS, TILE, ASM), 0.0)
        return tl.where(factor > 0, score, HIDDEN), factor
    return by_distance(score, a, b, seen, slope, bias, begin, begin, LAW, MASKS)


@triton.jit
def far(
    score, a, b, seen, slope, bias, share, a_word, a_word_2, corner, a0, b0,
    LAW: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr, BOUND: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The same for tiles that begin at a0 and b0. `a_word`, `a_word_2`: words of masks that hold a
    and the pivot whose `corner` it is; those that hold b are `starting` or else `ending`. Counts
    need `seen` only if BOUND."""
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
    """Scores of pairs with sinks `ahead` tokens away and their factors, as of `by_distance`: the
    weight is ALiBi's whatever the law. Counts are S times a weight, and so is this factor."""
    factor = tl.full(score.shape, 1.0, tl.float32)
    if counts(LAW):
        factor = tl.full(score.shape, MASKS * 1.0, tl.float32)
    return tl.where(seen, score - slope * tl.abs(ahead), HIDDEN), factor


@triton.constexpr_function
def counts(law):
    """Whether the masks that hold a pair are looked at one by one."""
    return law in ("count", "sum")


@triton.constexpr_function
def bounded(sinks, causal, gaps=False):
    """Whether counts must leave out by `seen` the sinks, among which no block of a pivot begins in
    causal tables, or what the keys leave out."""
    return gaps or (sinks > 0 and not causal)


@triton.constexpr_function
def scales(law):
    """Whether the weight is a factor of the exponential, not a part of the score."""
    return law in ("count", "sum", "rb")


@triton.constexpr_function
def near_stages(law, masks):
    """Stages of the loop over a diagonal tile: two words' planes fetched ahead would spill."""
    return 1 if law in ("count", "sum") and masks > 32 else None


@triton.constexpr_function
def packed(law, masks, causal):
    """Whether two words of masks are looked up in both directions: what the steps of a loop share
    would spill."""
    return law == "sum" and masks > 32 and not causal


@triton.constexpr_function
def lanes(masks):
    """Masks at a time, up to 32, one to each bit of a word or column of a product."""
    return 16 if masks <= 16 else 32


@triton.constexpr_function
def tile_depth(tile):
    return max(1, tile.bit_length() - 1)
