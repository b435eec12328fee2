"""Kernel `triton`, backward: dk and dv of the sinks, which every row sees: the rows are split over
programs.

A tile of keys to a program, as `kernels.impl.triton.dkdv` has it, would leave one program of a head
walking over all rows. A sink weighs the same under every law, so these kernels know none. The parts
are added up in float32.
"""

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E
from kernels.impl.triton.launch import precision_of, width_of
from kernels.impl.triton.tiles import key_gradients, load_pair, load_rows, row_of, sequence_geometry
from kernels.impl.triton.weights import ANY, SINK_STEP, between, to_sinks

ROWS = 64  # of a tile: 32 in float32, whose tiles take twice the memory
PROGRAMS = 264  # wanted at least: two for each multiprocessor of an H100
FEWEST = 4  # tiles of rows of a program: fewer are not worth a part of their own


@triton.jit(do_not_specialize=ANY)
def sink_kernel(
    Q, K, V, Dout, PartDk, PartDv, Lse, Delta, Geometry, Slope,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, sinks, scale, scale2,
    CAUSAL: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of sinks * splits, batch, heads). PartDk, PartDv (splits, batch, heads, sinks,
    DIM) float32 dense: what the rows of one split give, 0 for sinks that the keys do not have.
    COLUMNS sinks are a tile; rows are taken STEP at a time."""
    tiles = tl.cdiv(sinks, COLUMNS)
    split, splits = tl.program_id(0) // tiles, tl.num_programs(0) // tiles
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, tokens, lead, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    j0 = tl.program_id(0) % tiles * COLUMNS
    columns = j0 + tl.arange(0, COLUMNS)
    here = columns < tl.minimum(sinks, tokens)
    key_base = row_of(K, sequence, head // group, lead, k_b, k_h, k_t)
    value_base = row_of(V, sequence, head // group, lead, v_b, v_h, v_t)
    k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, COLUMNS)
    query_base = row_of(Q, sequence, head, -start, q_b, q_h, q_t)
    dout_base = row_of(Dout, sequence, head, -start, d_b, d_h, d_t)
    row_base = (sequence * heads + head) * queries - start
    slope = tl.load(Slope + head)

    lowest, stop = tl.maximum(start, 0), start + queries
    if CAUSAL:
        lowest = tl.maximum(lowest, j0)
    each = tl.cdiv(tl.cdiv(tl.maximum(stop - lowest, 0), STEP), splits) * STEP
    begin = lowest + split * each
    stop = tl.minimum(begin + each, stop)
    step = tl.arange(0, STEP)
    dk = tl.zeros([COLUMNS, WIDE], tl.float32)
    dv = tl.zeros([COLUMNS, WIDE], tl.float32)
    for i0 in tl.range(begin, stop, STEP):
        rows, q, dout, lse, delta = load_rows(
            query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, begin, stop,
            "linear", 0, DIM, WIDE, STEP,
        )  # fmt: skip
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        seen = here[:, None]
        if CAUSAL:
            seen = seen & (columns[:, None] <= rows[None, :])
        score, factor = to_sinks(score, between(columns, rows, j0, i0), seen, slope, "linear", 0)
        dk, dv = key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, "linear", PRECISION)
    dims = tl.arange(0, WIDE)
    part = (split.to(tl.int64) * tl.num_programs(1) + sequence) * heads + head
    to = (part * sinks + columns)[:, None] * DIM + dims[None, :]
    kept = (columns < sinks)[:, None] & (dims < DIM)[None, :]
    tl.store(PartDk + to, dk * scale, mask=kept)
    tl.store(PartDv + to, dv, mask=kept)


def splits_of(queries: int, programs: int) -> int:
    """How many programs share these rows where so many are there already: as many as fill a GPU,
    each with work."""
    return max(1, min(queries // (FEWEST * ROWS), triton.cdiv(PROGRAMS, programs)))


def sink_constants(causal: bool, dim: int, dtype: torch.dtype) -> dict:
    """What the kernel is compiled for, and how it is launched."""
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
    """(2, B, H, sinks, D) float32: dk and dv of the first tokens of each sequence, one for each
    query head, 0 of those that it does not have. The last dimension of q, dout (B, H, Tq, D), k and
    v (B, Hkv, Tk, D) is dense; lse and delta (B, H, Tq), `slope` (H,) for base-2 exponentials,
    `geometry` as of `sequence_geometry`."""
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
