"""Kernel `sdpa`: chunks of query rows against only the columns that some row of the chunk visits, by torch's
scaled_dot_product_attention. Nothing grows with n^2; memory is bounded by PIECE.

Sinks are further columns of every chunk. All (head, chunk) pairs whose visited width falls into one size class are
computed by one call, their keys gathered."""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from kernels.exact import spread_of
from kernels.weights import Weights

CHUNKS = (64, 128, 256)  # rows per chunk: more waste of the causal triangle, fewer gathered keys
PIECE = 1 << 20  # pairs computed at once (4 MB of log-weights): larger falls out of cache, smaller pays more calls


def attend_sdpa(
    q, k, v, weights: Weights, *, scale: float, causal: bool, offset: int, gap: int, need_lse: bool,
    need_spread: bool = False,
):  # fmt: skip
    """As `kernels.exact.attend_exact`, with lse None unless `need_lse`."""
    batch, heads, queries, dim = q.shape
    tokens, device = k.shape[2] + gap, q.device
    out = torch.zeros(batch * heads * queries, dim, dtype=q.dtype, device=device)
    lse = torch.full((len(out),), -math.inf, device=device, dtype=_compute_dtype(q)) if need_lse else None
    spread = torch.zeros(len(out), device=device) if need_spread else None
    halves = weights.halves() if need_spread else ()
    skip = min(max(0, -offset), queries)  # rows before the first token
    if skip < queries and k.shape[2]:
        flat = [x.reshape(-1, dim) for x in (q, k, v)]
        sinks = min(weights.sinks, tokens)
        for head, rows, first, size in _pieces(weights, offset + skip, offset + queries, tokens, causal, batch, device):
            slots = first[:, None] - gap + torch.arange(size, device=device)
            left_out = (slots < sinks)[:, None] if gap else None
            slots.clamp_min_(0)  # columns without a slot have no weight
            if sinks:
                slots = torch.cat([torch.arange(sinks, device=device).expand(len(head), -1), slots], -1)
            log_w = []
            for each in (weights, *halves):
                own = each.log_piece(head, rows, first, size, causal)
                if gap:  # what is left out is not seen
                    own = own.masked_fill(left_out, -math.inf)
                log_w.append(torch.cat([each.log_sinks(head, rows, sinks, causal), own], -1) if sinks else own)
            _attend_piece(flat, head, rows - offset, slots, log_w, scale, q.shape, k.shape, out, lse, spread)
    return out.view(q.shape), *(None if x is None else x.view(q.shape[:3]) for x in (lse, spread))


def _pieces(
    weights: Weights, begin: int, stop: int, tokens: int, causal: bool, batch: int, device: torch.device
) -> Iterator:
    """Every row of begin .. stop - 1 of every head, once: heads (G,), rows (G, C), the first column of each group (G,)
    and how many columns follow from it, the same for all G."""
    for length, members, starts in _chunks(weights, begin, stop, device):
        head, first_row = (x.reshape(-1) for x in torch.meshgrid(members, starts, indexing="ij"))
        last_row = first_row + length - 1
        low = weights.reach(head, first_row[:, None])[0][:, 0]
        high = last_row if causal else weights.reach(head, last_row[:, None])[1][:, 0].clamp_max(tokens - 1)
        width = _size_class(high - low + 1)
        for size in width.unique().tolist():
            alike = torch.nonzero(width == size)[:, 0]
            pairs = length * max((size + weights.sinks) * batch, weights.numbers_per_row)
            for some in alike.split(max(1, PIECE // pairs)):
                rows = first_row[some, None] + torch.arange(length, device=device)
                yield head[some], rows, high[some] + 1 - size, size


def _chunks(weights: Weights, begin: int, stop: int, device: torch.device) -> Iterator:
    """(rows per chunk, heads, first rows of the chunks): about a quarter of what a row of the head visits, and what is
    left over at the end as a chunk of its own. Few rows make one chunk."""
    heads = torch.arange(weights.heads, device=device)
    if stop - begin <= CHUNKS[0]:
        yield stop - begin, heads, torch.tensor([begin], device=device)
        return
    probe = torch.linspace(begin, stop - 1, 17, device=device).long()[None].expand(weights.heads, -1)
    reach = (probe - weights.reach(heads, probe)[0]).median(1).values
    choice = torch.bucketize(reach, torch.tensor([4 * chunk for chunk in CHUNKS[1:]], device=device))
    for i, chunk in enumerate(CHUNKS):
        members = heads[choice == i]
        if len(members) == 0:
            continue
        whole = stop - (stop - begin) % chunk
        if whole > begin:
            yield chunk, members, torch.arange(begin, whole, chunk, device=device)
        if whole < stop:
            yield stop - whole, members, torch.tensor([whole], device=device)


def _attend_piece(flat, head, rows, slots, log_w, scale, q_shape, k_shape, out, lse, spread):
    """Rows (G, C) of q against slots (G, W) of k under the log-weights (G, C, W) of `log_w`, the first, written into
    out and lse, and the two others', if there are any, into spread; all tensors flattened to (-1, dim), which
    index_select copies several times faster than indexing by (head, row) does."""
    batch, heads, queries, dim = q_shape
    kv_heads, keys = k_shape[1:3]
    sequence = torch.arange(batch, device=rows.device)[:, None, None]
    own = (sequence * heads + head[:, None]) * queries + rows
    shared = (sequence * kv_heads + (head * kv_heads // heads)[:, None]) * keys + slots
    # off the CPU torch would want the bias in the low precision of q
    dtype = out.dtype if out.device.type == "cpu" else _compute_dtype(out)
    query, key, value = (
        x.index_select(0, index.reshape(-1)).view(*index.shape, dim).to(dtype)
        for x, index in zip(flat, (own, shared, shared), strict=True)
    )
    bias, *others = (x.to(dtype if dtype == torch.float64 else torch.float32)[None] for x in log_w)
    result = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    own = own.reshape(-1)
    out.index_copy_(0, own, result.reshape(-1, dim).to(out.dtype))
    if lse is not None:
        score = query.to(lse.dtype) @ key.to(lse.dtype).transpose(-1, -2) * scale + bias
        lse.index_copy_(0, own, torch.logsumexp(score, dim=-1).reshape(-1))
    if others:
        # torch's own pass again takes less time on a CPU than scores that are shared but written to memory
        with torch.no_grad():
            query, key, value = (x.to(_compute_dtype(out)) for x in (query, key, value))
            halves = (F.scaled_dot_product_attention(query, key, value, attn_mask=x, scale=scale) for x in others)
            spread.index_copy_(0, own, spread_of(*halves).reshape(-1))


def _compute_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _size_class(width: torch.Tensor) -> torch.Tensor:
    """Round widths up to 16, 20, 24, 28, 32, 40, 48, ...: at most a quarter is wasted and few calls are made."""
    step = 2 ** (torch.ceil(torch.log2(width.clamp_min(16).double())).long() - 3)
    return (width.clamp_min(16) + step - 1) // step * step
