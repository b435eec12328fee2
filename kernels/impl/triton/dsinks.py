"""Kernel `triton`, backward: dk and dv of the sinks, which every row sees, with the rows split over
programs.

With a tile of keys per program, as in `kernels.impl.triton.dkdv`, one program of each head would
walk over all rows. The weight of a sink is the same under every law, so this kernel knows none. The
parts are summed in float32.
"""

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E
from kernels.impl.triton.launch import precision_of, width_of
from kernels.impl.triton.tiles import key_gradients, load_pair, load_rows, row_pointer, sequence_geometry
from kernels.impl.triton.weights import SINK_STEP, UNSPECIALIZED, signed_distance, weigh_exact

ROWS = 64  # of a tile; 32 in float32, whose tiles take twice the memory
MIN_PROGRAMS = 264  # two for each multiprocessor of an H100
MIN_TILES = 4  # tiles of rows per program: a part with fewer is not worth its sum


@triton.jit(do_not_specialize=UNSPECIALIZED)
def sink_kernel(
    Q, K, V, Dout, PartDk, PartDv, Lse, Delta, Geometry, Slope,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, sinks, scale, scale2,
    CAUSAL: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of sinks * splits, batch, heads). PartDk, PartDv: (splits, batch, heads, sinks,
    DIM) float32 dense, the gradients from the rows of one split; 0 for sinks beyond the keys. A
    tile has COLUMNS sinks; rows are taken STEP at a time."""
    tiles = tl.cdiv(sinks, COLUMNS)
    split, splits = tl.program_id(0) // tiles, tl.num_programs(0) // tiles
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, tokens, slot_offset, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    j0 = tl.program_id(0) % tiles * COLUMNS
    columns = j0 + tl.arange(0, COLUMNS)
    key_mask = columns < tl.minimum(sinks, tokens)
    key_base = row_pointer(K, sequence, head // group, slot_offset, k_b, k_h, k_t)
    value_base = row_pointer(V, sequence, head // group, slot_offset, v_b, v_h, v_t)
    k, v = load_pair(key_base, value_base, k_t, v_t, j0, key_mask, DIM, WIDE, COLUMNS)
    query_base = row_pointer(Q, sequence, head, -start, q_b, q_h, q_t)
    dout_base = row_pointer(Dout, sequence, head, -start, d_b, d_h, d_t)
    row_base = (sequence * heads + head) * queries - start
    slope = tl.load(Slope + head)

    # the rows of this split
    lowest, stop = tl.maximum(start, 0), start + queries
    if CAUSAL:
        lowest = tl.maximum(lowest, j0)
    rows_per_split = tl.cdiv(tl.cdiv(tl.maximum(stop - lowest, 0), STEP), splits) * STEP
    begin = lowest + split * rows_per_split
    stop = tl.minimum(begin + rows_per_split, stop)

    step = tl.arange(0, STEP)
    dk = tl.zeros([COLUMNS, WIDE], tl.float32)
    dv = tl.zeros([COLUMNS, WIDE], tl.float32)
    for i0 in tl.range(begin, stop, STEP):
        rows, q, dout, lse, delta = load_rows(
            query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, begin, stop,
            "linear", 0, DIM, WIDE, STEP,
        )  # fmt: skip

        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        pair_mask = key_mask[:, None]
        if CAUSAL:
            pair_mask = pair_mask & (columns[:, None] <= rows[None, :])
        score, factor = weigh_exact(score, signed_distance(columns, rows, j0, i0), pair_mask, slope, "linear", 0)
        dk, dv = key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, "linear", PRECISION)

    dims = tl.arange(0, WIDE)
    part = (split.to(tl.int64) * tl.num_programs(1) + sequence) * heads + head
    target = (part * sinks + columns)[:, None] * DIM + dims[None, :]
    store_mask = (columns < sinks)[:, None] & (dims < DIM)[None, :]
    tl.store(PartDk + target, dk * scale, mask=store_mask)
    tl.store(PartDv + target, dv, mask=store_mask)


def splits_of(queries: int, programs: int) -> int:
    """Number of programs that share the rows of each of `programs`: as many as fill a GPU, each
    with at least MIN_TILES tiles of rows."""
    return max(1, min(queries // (MIN_TILES * ROWS), triton.cdiv(MIN_PROGRAMS, programs)))


def sink_constants(causal: bool, dim: int, dtype: torch.dtype) -> dict:
    """Constants and launch options of the kernel.

    Args:
        causal, dim, dtype: of the call.
    """
    return {
        "CAUSAL": causal,
        "DIM": dim,
        "WIDE": width_of(dim),
        "COLUMNS": SINK_STEP.value,
        "STEP": ROWS // 2 if dtype == torch.float32 else ROWS,
        "PRECISION": precision_of(dtype),
        "num_warps": 4,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


def sink_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dout: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    slope: torch.Tensor,
    geometry: torch.Tensor,
    *,
    sinks: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """Returns dk and dv of the first tokens of each sequence, (2, B, H, sinks, D) float32.

    Args:
        q, dout: (B, H, Tq, D), and k, v: (B, Hkv, Tk, D), with dense last dimensions.
        lse, delta: (B, H, Tq) float32.
        slope: (H,), for base-2 exponentials.
        geometry: as in `kernels.impl.triton.tiles.sequence_geometry`.
        sinks: number of first tokens; a token that the sequence lacks gets 0.
        causal, scale: of the call.
    """
    batch, heads, queries, dim = q.shape
    fixed = sink_constants(causal, dim, q.dtype)
    tiles = triton.cdiv(sinks, fixed["COLUMNS"])
    splits = splits_of(queries, batch * heads * tiles)
    parts = torch.empty(2, splits, batch, heads, sinks, dim, dtype=torch.float32, device=q.device)
    inputs = (q, k, v, dout)
    strides = [stride for x in inputs for stride in x.stride()[:3]]
    sink_kernel[(tiles * splits, batch, heads)](
        *inputs, *parts, lse, delta, geometry, slope, *strides,
        heads, heads // k.shape[1], queries, k.shape[2], sinks, scale, scale * LOG2E, **fixed,
    )  # fmt: skip
    return parts.sum(1)
