"""Kernel `triton` as torch operators: torch.compile takes them whole, and autograd differentiates the forward pass.

An operator knows tensors and plain numbers only, so weights come as `numbers_of`, and what needs a look at numbers on
the host happens inside. The tables are the result of an operator of their own: autograd holds them from forward to
backward, and nothing else does. Triton launches on the current device: each operator makes that of its tensors the
current one, for models that lie on several.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor

from kernels.places import check_places
from kernels.tables import (
    LOG2E,
    RowTables,
    Tables,
    bias_by_distance,
    bias_of,
    empty_tables,
    fill_rest,
    law_of,
    reach_of,
    whole_tiles,
)
from kernels.triton_backward import backward
from kernels.triton_decode import decode
from kernels.triton_forward import forward
from kernels.triton_launch import places_on
from kernels.triton_tables import fill_row_tables, fill_tables
from kernels.union import PositionalLSH
from kernels.weights import Weights, Window

ENDLESS = 2.0**52  # tokens, a whole number in float64


def numbers_of(weights: Weights) -> tuple[Tensor, dict]:
    """The weights as (H, 1 + 4 S) float64 on the host, slope, then widths, shifts, weights and reciprocal widths of the
    masks, or (H, 2), slope and reach, of weights without masks (masks = 0); and `law`, `masks` and `sinks`."""
    slopes, law = weights.slopes[:, None], law_of(weights)
    if isinstance(weights, PositionalLSH):
        masks, width = weights.count, weights.masks.width
        columns = (width, weights.masks.shift, weights.masks.log_weight.exp(), width.reciprocal())
    else:
        masks = 0
        columns = (weights.tokens.double()[:, None] if isinstance(weights, Window) else slopes * 0 + ENDLESS,)
    return torch.cat([slopes, *columns], 1), {"law": law, "masks": masks, "sinks": weights.sinks}


def numbers_on(weights: Weights, device: torch.device) -> tuple[Tensor, Tensor, Tensor, dict]:
    """`numbers_of` with the numbers on a device, and between them the slopes and shares of `RowTables`. They stay there
    as long as the weights live: copied at every call they would stall the stream, and no CUDA graph could capture the
    call."""
    if torch.compiler.is_compiling():
        return _numbers_there(weights, device)
    kept = vars(weights).setdefault("_numbers", {})
    if device not in kept:
        with torch.inference_mode(False):
            found = _numbers_there(weights, device)
        if isinstance(found[0], FakeTensor):
            return found
        kept[device] = found
    return kept[device]


def _numbers_there(weights: Weights, device: torch.device) -> tuple[Tensor, Tensor, Tensor, dict]:
    numbers, kind = numbers_of(weights)
    counted = kind["law"] in ("count", "sum")
    share = numbers[:, 1 + 2 * kind["masks"] :][:, : kind["masks"]] if counted else numbers[:0, 0]
    of_rows = (numbers[:, 0] * LOG2E, share.contiguous())
    return numbers.to(device), *(x.float().to(device) for x in of_rows), kind


def bias_on(weights: Weights, tokens: int, numbers: Tensor) -> Tensor:
    """`kernels.tables.bias_of` where the `numbers` of the weights are; nothing is kept of what is only traced."""
    if law_of(weights) != "distance":
        return numbers.new_empty(0, dtype=torch.float32)
    if torch.compiler.is_compiling() or detect_fake_mode(numbers) is not None:
        return bias_op(numbers, weights.count, reach_of(weights, tokens))
    return bias_of(weights, tokens, numbers[:, 0])


@torch.library.custom_op("positional_lsh::bias", mutates_args=())
def bias_op(numbers: Tensor, masks: int, reach: int) -> Tensor:
    """`bias_by_distance` where `numbers` are: nothing that torch.compile would do well to look into."""
    return bias_by_distance(numbers[:, 0], masks, "systematic", reach)


@bias_op.register_fake
def _(numbers, masks, reach):
    return numbers.new_empty(len(numbers), reach, dtype=torch.float32)


def tables_on_device(
    weights: Weights, tokens: int, *, tile: int, causal: bool, device: torch.device, origin: int = 0
) -> Tables:
    """As `kernels.tables.build_tables`, on a CUDA device or in Triton's interpreter."""
    numbers, _, _, kind = numbers_on(weights, device)
    tensors = tables_op(numbers, **kind, origin=origin, tokens=tokens, tile=tile, causal=causal)
    tables = Tables(kind["law"], tile, kind["masks"], kind["sinks"], origin, *tensors)
    return replace(tables, bias=bias_on(weights, whole_tiles(tokens, tile), numbers))


@torch.library.custom_op("positional_lsh::tables", mutates_args=())
def tables_op(
    numbers: Tensor, law: str, masks: int, sinks: int, origin: int, tokens: int, tile: int, causal: bool
) -> list[Tensor]:
    """`Tables.tensors` where `numbers` are, the bias left empty."""
    tables = empty_tables(law, masks, sinks, origin, tokens, tile, causal, len(numbers), numbers.device)
    with torch.cuda.device_of(numbers):
        fill_tables(numbers, tables, tokens)
    fill_rest(tables, numbers[:, 0], numbers[:, 1 + 2 * masks :][:, :masks])
    return tables.tensors


@tables_op.register_fake
def _(numbers, law, masks, sinks, origin, tokens, tile, causal):
    return empty_tables(law, masks, sinks, origin, tokens, tile, causal, len(numbers), numbers.device).tensors


def fused(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, pads: Tensor | list[int], starts: Tensor | list[int],
    gaps: list[int], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`kernels.triton_forward.forward`, with gradients for q, k and v through out and through lse."""
    kind = (tables.law, tables.masks, tables.sinks, tables.tile, tables.origin)
    return forward_op(q, k, v, tables.tensors, torch.as_tensor(pads), torch.as_tensor(starts), gaps, *kind, scale)


@torch.library.custom_op("positional_lsh::forward", mutates_args=())
def forward_op(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], pads: Tensor, starts: Tensor, gaps: list[int],
    law: str, masks: int, sinks: int, tile: int, origin: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out like q and lse (B, H, Tq) float32; pads and starts (B,), best on the host, where they are read."""
    pads, starts = check_places(pads, starts, gaps, q.shape[2], k.shape[2], sinks)
    places = _placed(pads, starts, gaps, q)
    held = Tables(law, tile, masks, sinks, origin, *tables)
    with torch.cuda.device_of(q):
        return forward(*map(dense, (q, k, v)), held, places, scale=scale)


@forward_op.register_fake
def _(q, k, v, tables, pads, starts, gaps, law, masks, sinks, tile, origin, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("positional_lsh::backward", mutates_args=())
def backward_op(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor, tables: list[Tensor],
    pads: Tensor, starts: Tensor, law: str, masks: int, sinks: int, tile: int, origin: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients like q, k and v."""
    inputs = (*map(dense, (q, k, v)), dense(out), lse, dense(dout), dlse)
    held = Tables(law, tile, masks, sinks, origin, *tables)
    with torch.cuda.device_of(q):
        return backward(*inputs, held, pads.tolist(), starts.tolist(), scale)


@backward_op.register_fake
def _(q, k, v, out, lse, dout, dlse, tables, pads, starts, law, masks, sinks, tile, origin, scale):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _keep(ctx, inputs, output):
    q, k, v, tables, pads, starts, _, *ctx.kind = inputs
    ctx.save_for_backward(q, k, v, *output, pads, starts, *tables)


def _differentiate(ctx, dout, dlse):
    q, k, v, out, lse, pads, starts, *tables = ctx.saved_tensors
    gradients = backward_op(q, k, v, out, lse, dout, dlse, tables, pads, starts, *ctx.kind)
    return *gradients, [None] * len(tables), *[None] * (3 + len(ctx.kind))


forward_op.register_autograd(_differentiate, setup_context=_keep)


@torch.library.custom_op("positional_lsh::decode", mutates_args=())
def decode_op(
    q: Tensor, k: Tensor, v: Tensor, numbers: Tensor, slope: Tensor, share: Tensor, bias: Tensor, pads: Tensor,
    starts: Tensor, gaps: list[int], law: str, masks: int, sinks: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same for a few causal rows, without gradients; `numbers`, as of `numbers_of`, and what `RowTables` has of
    them where q is. The tables live within."""
    pads, starts = check_places(pads, starts, gaps, q.shape[2], k.shape[2], sinks)
    if len(starts) == 1 and starts[0] >= 0:  # one launch: beside a row's work each of them counts
        rows = torch.arange(starts[0], starts[0] + q.shape[2], device=q.device)
    else:
        rows = torch.tensor(starts, device=q.device)[:, None] + torch.arange(q.shape[2], device=q.device)
        rows = rows.clamp_min_(0).view(-1)
    tables = row_tables(numbers, slope, share, bias, rows, law=law, masks=masks, sinks=sinks)
    with torch.cuda.device_of(q):
        return decode(*map(dense, (q, k, v)), tables, _placed(pads, starts, gaps, q), scale=scale)


@decode_op.register_fake
def _(q, k, v, numbers, slope, share, bias, pads, starts, gaps, law, masks, sinks, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=torch.float32)


def row_tables(
    numbers: Tensor, slope: Tensor, share: Tensor, bias: Tensor, rows: Tensor, *, law: str, masks: int, sinks: int
) -> RowTables:
    """As `kernels.tables.build_row_tables` for rows (N,) int64, all where `numbers` are."""
    counted = law in ("count", "sum")
    first = torch.empty(len(numbers), len(rows), dtype=torch.int32, device=rows.device)
    starts = torch.empty((*first.shape, masks) if counted else 0, dtype=torch.int32, device=rows.device)
    with torch.cuda.device_of(numbers):
        fill_row_tables(numbers, rows, first, starts, law=law, masks=masks, sinks=sinks)
    return RowTables(law, masks, sinks, first, starts, slope, bias, share)


def _placed(pads: list[int], starts: list[int], gaps: list[int], q: Tensor) -> Tensor:
    """`places_on` where q is."""
    return places_on((tuple(pads), tuple(starts), *[tuple(gaps)] * any(gaps)), q.device)


def dense(x: Tensor) -> Tensor:
    """x with a dense last dimension, as the kernels want it."""
    return x if x.stride(-1) == 1 else x.contiguous()
