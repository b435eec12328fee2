"""How the Triton kernels weigh the pairs of a tile, from the tables of `kernels.impl.tables`.

Scores are in base 2. A law either adds the bias to the score, or keeps the score and multiplies its
exponential by a factor (`scales`). With "count" and "sum" the factor is S times the weight.
"""

import triton
import triton.language as tl

MASKED_SCORE = tl.constexpr(-1.0e30)  # of a pair that is not visited: finite, so that no difference of scores is NaN
# arguments that Triton does not specialize for, since their value changes nothing in the code: no
# further compilation for an even length or a single head
UNSPECIALIZED = ("heads", "group", "queries", "keys", "reach", "masks", "number", "tokens", "sinks", "splits")
# whether Triton runs kernels in its interpreter (TRITON_INTERPRET=1 at the import of this module)
INTERPRETED = triton.knobs.runtime.interpret
LN2 = tl.constexpr(0.6931471805599453)
SINK_STEP = tl.constexpr(16)  # sinks at a time: the least that a product takes, since more would take more registers


@triton.jit
def popcount(x, ASM: tl.constexpr):
    """Number of bits set in each int32. ASM: one instruction; without it, arithmetic for the
    interpreter."""
    if ASM:
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
def gather(table, index, ASM: tl.constexpr):
    """Entries (float32) of a table at each index, read when they are used: the pipeliner would copy
    the reads of `tl.load` into shared memory beforehand, for every pair of a tile."""
    if ASM:
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [table + index], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.load(table + index)


@triton.jit
def pivot_words(pivot_block, positions, WORD: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr):
    """Bitmask of the masks whose pivot block starts at or before each position (STARTING), or ends
    after it. `pivot_block`: pointer to the starts, followed by the ends."""
    lane = WORD * 32 + tl.arange(0, 32)
    bit = tl.full([32], 1, tl.int32) << tl.arange(0, 32)
    if STARTING:
        covered = tl.load(pivot_block + lane, mask=lane < MASKS, other=2147483647)[None, :] <= positions[:, None]
    else:
        covered = tl.load(pivot_block + MASKS + lane, mask=lane < MASKS, other=0)[None, :] > positions[:, None]
    return tl.sum(tl.where(covered, bit[None, :], 0), 1)


@triton.jit
def load_words(pivot_block, positions, LAW: tl.constexpr, MASKS: tl.constexpr, STARTING: tl.constexpr):
    """`pivot_words` of the first and the next 32 masks, if the law counts masks and there are that
    many; otherwise placeholders of the same shape."""
    word, word_2 = positions, positions
    if counts(LAW):
        word = pivot_words(pivot_block, positions, 0, MASKS, STARTING)
        if MASKS > 32:
            word_2 = pivot_words(pivot_block, positions, 1, MASKS, STARTING)
    return word, word_2


@triton.jit
def head_tables(
    head, tile, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, tiles, reach,
    LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Returns a head's slope and pointers to its bias and byte weights, and to the bitplanes and
    pivot blocks of one tile. `tiles`: number of tiles in the tables; `reach`: width of the bias."""
    slope = 0.0
    if needs_slope(LAW, NEAR):
        slope = tl.load(Slope + head)
    words: tl.constexpr = (MASKS + 31) // 32
    at = head * tiles + tile
    bitplanes, pivot_block = Bitplanes + at * (words * tile_depth(TILE) * TILE), PivotBlocks + at * (4 * MASKS)
    return slope, Bias + head * reach, ByteWeights + head * (words * 4 * 256), bitplanes, pivot_block


@triton.jit
def word_weights(word, byte_weights, LAW: tl.constexpr, MASKS: tl.constexpr, WORD: tl.constexpr, ASM: tl.constexpr):
    """S times the weight of each pair, from the bitmask of the masks that cover it: their number,
    or the sum of their weights."""
    if LAW == "count":
        return popcount(word, ASM).to(tl.float32)
    total = tl.zeros(word.shape, tl.float32)
    for byte in tl.static_range((min(32, MASKS - WORD * 32) + 7) // 8):
        total += gather(byte_weights + (WORD * 4 + byte) * 256, (word >> (8 * byte)) & 255, ASM)
    return total


@triton.jit
def diagonal_word_weights(
    bitplanes, rows, columns, byte_weights,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """S times the weight of the pairs of one diagonal tile. `rows` and `columns` count from the
    tile's first token; `bitplanes` points to the tile's planes."""
    WORDS: tl.constexpr = (MASKS + 31) // 32
    DEPTH: tl.constexpr = tile_depth(TILE)
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)

    for word in tl.static_range(WORDS):
        # masks in which the ranks of row and column differ in some bit
        differing = tl.zeros([rows.shape[0], columns.shape[0]], tl.int32)
        for k in tl.static_range(DEPTH):
            bitplane = bitplanes + (word * DEPTH + k) * TILE
            differing = differing | (tl.load(bitplane + rows)[:, None] ^ tl.load(bitplane + columns)[None, :])
        if LAW == "count":
            total += (min(32, MASKS - word * 32) - popcount(differing, ASM)).to(tl.float32)
        else:
            total += word_weights(~differing, byte_weights, LAW, MASKS, word, ASM)
    return total


@triton.jit
def signed_distance(rows, columns, i0, j0):
    """columns - rows for tiles that begin at i0 and j0, (rows, columns) float32, exact up to 2^24
    tokens."""
    across = (columns - j0).to(tl.float32) + (j0 - i0).to(tl.float32)
    return across[None, :] - (rows - i0).to(tl.float32)[:, None]


@triton.jit
def weigh_by_distance(score, rows, columns, pair_mask, slope, bias, i0, j0, LAW: tl.constexpr, MASKS: tl.constexpr):
    """For laws that depend on the distance alone: returns scores, MASKED_SCORE outside `pair_mask`,
    and the factor of their exponentials. The factor is used only if the law `scales`; otherwise the
    scores include the bias."""
    if LAW == "distance":
        distance = tl.abs(rows[:, None] - columns[None, :])
        return score + tl.load(bias + distance, mask=pair_mask, other=MASKED_SCORE), score
    distance = tl.abs(signed_distance(rows, columns, i0, j0))
    if LAW == "linear":
        return tl.where(pair_mask, score - slope * distance, MASKED_SCORE), score
    if MASKS == 1:  # L / L
        return tl.where(pair_mask, score, MASKED_SCORE), tl.full(score.shape, 1.0, tl.float32)

    # L / (1 - (1 - L)^S): repeated squaring of 1 - L, on 1 minus each power so that small L is
    # exact
    alibi = tl.maximum(tl.exp2(-slope * distance), 1e-30)
    power = alibi
    coverage = tl.zeros_like(alibi)
    for bit in tl.static_range(MASKS.bit_length()):
        if (MASKS >> bit) % 2 == 1:
            coverage = coverage + power - coverage * power
        power = power * (2.0 - power)
    return tl.where(pair_mask, score, MASKED_SCORE), alibi / coverage


@triton.jit
def weigh_diagonal(
    score, a, b, pair_mask, slope, bias, bitplanes, byte_weights, begin,
    LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scores and factors (a, b), as from `weigh_by_distance`, of positions a and b in one tile that
    starts at `begin`. Pairs less than NEAR tokens apart have ALiBi's weight."""
    if NEAR >= TILE:  # all of them
        return weigh_exact(score, signed_distance(a, b, begin, begin), pair_mask, slope, LAW, MASKS)
    if counts(LAW):
        weight = diagonal_word_weights(bitplanes, a - begin, b - begin, byte_weights, LAW, MASKS, TILE, ASM)
        factor = tl.where(pair_mask, weight, 0.0)
        if NEAR > 0:
            score, factor = weigh_near(score, factor, a, b, pair_mask, slope, begin, begin, LAW, MASKS, NEAR)
        return tl.where(factor > 0, score, MASKED_SCORE), factor
    score, factor = weigh_by_distance(score, a, b, pair_mask, slope, bias, begin, begin, LAW, MASKS)
    if NEAR > 0:
        score, factor = weigh_near(score, factor, a, b, pair_mask, slope, begin, begin, LAW, MASKS, NEAR)
    return score, factor


@triton.jit
def weigh_off_diagonal(
    score, a, b, pair_mask, slope, bias, byte_weights, a_word, a_word_2, pivot_block, a0, b0,
    LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr, STARTING: tl.constexpr, BOUND: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Like `weigh_diagonal`, for off-diagonal tiles that start at a0 and b0. `a_word`, `a_word_2`:
    bitmasks of the masks whose pivot block contains each a. STARTING selects whether b is tested
    against block starts or ends. With counts, `pair_mask` is needed only if BOUND or NEAR."""
    if counts(LAW):
        word = a_word[:, None] & pivot_words(pivot_block, b, 0, MASKS, STARTING)[None, :]
        factor = word_weights(word, byte_weights, LAW, MASKS, 0, ASM)
        if MASKS > 32:
            word_2 = a_word_2[:, None] & pivot_words(pivot_block, b, 1, MASKS, STARTING)[None, :]
            factor += word_weights(word_2, byte_weights, LAW, MASKS, 1, ASM)
        if BOUND:
            factor = tl.where(pair_mask, factor, 0.0)
        if NEAR > 0:
            score, factor = weigh_near(score, factor, a, b, pair_mask, slope, a0, b0, LAW, MASKS, NEAR)
        return tl.where(factor > 0, score, MASKED_SCORE), factor
    score, factor = weigh_by_distance(score, a, b, pair_mask, slope, bias, a0, b0, LAW, MASKS)
    if NEAR > 0:
        score, factor = weigh_near(score, factor, a, b, pair_mask, slope, a0, b0, LAW, MASKS, NEAR)
    return score, factor


@triton.jit
def weigh_exact(score, ahead, pair_mask, slope, LAW: tl.constexpr, MASKS: tl.constexpr):
    """Scores and factors, as from `weigh_by_distance`, of pairs `ahead` tokens apart that have
    ALiBi's weight whatever the law: with sinks, and in the near field. For counts the factor is S
    times 1, like all their factors."""
    factor = tl.full(score.shape, full_factor(LAW, MASKS), tl.float32)
    return tl.where(pair_mask, score - slope * tl.abs(ahead), MASKED_SCORE), factor


@triton.jit
def weigh_near(
    score, factor, a, b, pair_mask, slope, a0, b0, LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    """Scores and factors (a, b) with those of `weigh_exact` where a pair within `pair_mask` is less
    than NEAR tokens apart. The scores of these pairs have no bias yet."""
    distance = tl.abs(signed_distance(a, b, a0, b0))
    near = pair_mask & (distance < NEAR)
    return tl.where(near, score - slope * distance, score), tl.where(near, full_factor(LAW, MASKS), factor)


@triton.constexpr_function
def counts(law):
    """Whether the weight depends on which masks cover the pair (`Law.per_mask`)."""
    return law in ("count", "sum")


@triton.constexpr_function
def needs_pair_mask(sinks, causal, gaps=False):
    """Whether counts off the diagonal need the pair mask: to leave out evicted keys, or the sinks.
    In causal tables no pivot block starts among the sinks.

    Args:
        sinks: number of sinks.
        causal: whether a row sees no key after it.
        gaps: whether tokens were evicted from the keys.
    """
    return gaps or (sinks > 0 and not causal)


@triton.constexpr_function
def needs_slope(law, near):
    """Whether pairs without a sink need the slope; `near`: as in `near_constant`."""
    return law in ("linear", "rb") or near > 0


@triton.constexpr_function
def full_factor(law, masks):
    """The factor of weight 1."""
    return float(masks) if law in ("count", "sum") else 1.0


@triton.constexpr_function
def near_span(near, step):
    """Tokens off the diagonal tile that hold the rest of the near field, in whole steps."""
    return (max(near - 1, 0) + step - 1) // step * step


@triton.constexpr_function
def scales(law):
    """Whether the weight is a factor of the exponential rather than part of the score."""
    return law in ("count", "sum", "rb")


@triton.constexpr_function
def diagonal_stages(law, masks):
    """Stages of the loop over a diagonal tile: prefetching the planes of two words would spill."""
    return 1 if law in ("count", "sum") and masks > 32 else None


@triton.constexpr_function
def spills_if_hoisted(law, masks, causal):
    """Whether values hoisted out of an off-diagonal loop would spill: with two words of masks that
    are looked up in both directions.

    Args:
        law: value of a `Law`.
        masks: number of masks that the kernel counts.
        causal: whether a row sees no key after it.
    """
    return law == "sum" and masks > 32 and not causal


@triton.constexpr_function
def lanes(masks):
    """Number of masks handled at a time, up to 32: one for each bit of a word or column of a matrix
    product."""
    return 16 if masks <= 16 else 32


@triton.constexpr_function
def tile_depth(tile):
    """Number of bitplanes: bits of a rank within a tile."""
    return max(1, tile.bit_length() - 1)
