"""Kernel `triton`, backward: delta = dout . out - dlse of each row, in one pass over the memory."""

import torch
import triton
import triton.language as tl

from kernels.impl.triton.launch import width_of
from kernels.impl.triton.tiles import load_tile, row_pointer
from kernels.impl.triton.weights import UNSPECIALIZED

ROWS = 32  # per program


@triton.jit(do_not_specialize=UNSPECIALIZED)
def delta_kernel(
    Out, Dout, Dlse, Delta, o_b, o_h, o_t, d_b, d_h, d_t, l_b, l_h, l_t, heads, queries,
    DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, batch, heads). Out, Dout and Dlse come with strides of sequence, head
    and row; the last dimension of Out and Dout is dense. Delta (batch, heads, queries) float32
    dense."""
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin, offsets = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    row_mask = begin + offsets < queries
    out = load_tile(row_pointer(Out, sequence, head, begin, o_b, o_h, o_t), o_t, row_mask, DIM, WIDE, ROWS)
    dout = load_tile(row_pointer(Dout, sequence, head, begin, d_b, d_h, d_t), d_t, row_mask, DIM, WIDE, ROWS)
    dlse = tl.load(row_pointer(Dlse, sequence, head, begin, l_b, l_h, l_t) + offsets * l_t, mask=row_mask, other=0.0)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1) - dlse
    tl.store(Delta + (sequence * heads + head) * queries + begin + offsets, delta, mask=row_mask)


def delta_of(out: torch.Tensor, dout: torch.Tensor, dlse: torch.Tensor) -> torch.Tensor:
    """Returns delta (B, H, Tq) float32.

    Args:
        out: (B, H, Tq, D), with a dense last dimension.
        dout: gradient of out, of the same kind.
        dlse: (B, H, Tq), gradient of the log-sum-exp.
    """
    batch, heads, queries, dim = out.shape
    delta = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    delta_kernel[(triton.cdiv(queries, ROWS), batch, heads)](
        out, dout, dlse, delta, *out.stride()[:3], *dout.stride()[:3], *dlse.stride(), heads, queries,
        DIM=dim, WIDE=width_of(dim), ROWS=ROWS, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return delta
