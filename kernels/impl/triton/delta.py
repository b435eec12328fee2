"""Kernel `triton`, backward: delta = dout . out of each row, less the gradient of its log-sum-exp,
in one reading."""

import torch
import triton
import triton.language as tl

from kernels.impl.triton.launch import width_of
from kernels.impl.triton.tiles import load_tile, row_of
from kernels.impl.triton.weights import ANY

ROWS = 32  # of a program


@triton.jit(do_not_specialize=ANY)
def delta_kernel(
    Out, Dout, Dlse, Delta, o_b, o_h, o_t, d_b, d_h, d_t, l_b, l_h, l_t, heads, queries,
    DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, batch, heads). Out, Dout, Dlse by their strides of sequence, head and
    row, the last dimension of Out and Dout dense; Delta (batch, heads, queries) float32 dense."""
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin, place = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    mine = begin + place < queries
    out = load_tile(row_of(Out, sequence, head, begin, o_b, o_h, o_t), o_t, mine, DIM, WIDE, ROWS)
    dout = load_tile(row_of(Dout, sequence, head, begin, d_b, d_h, d_t), d_t, mine, DIM, WIDE, ROWS)
    dlse = tl.load(row_of(Dlse, sequence, head, begin, l_b, l_h, l_t) + place * l_t, mask=mine, other=0.0)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1) - dlse
    tl.store(Delta + (sequence * heads + head) * queries + begin + place, delta, mask=mine)


def delta_of(out: torch.Tensor, dout: torch.Tensor, dlse: torch.Tensor) -> torch.Tensor:
    """(B, H, Tq) float32 from out and dout (B, H, Tq, D), the last dimension of both dense, and
    dlse (B, H, Tq)."""
    batch, heads, queries, dim = out.shape
    delta = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    delta_kernel[(triton.cdiv(queries, ROWS), batch, heads)](
        out, dout, dlse, delta, *out.stride()[:3], *dout.stride()[:3], *dlse.stride(), heads, queries,
        DIM=dim, WIDE=width_of(dim), ROWS=ROWS, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return delta
