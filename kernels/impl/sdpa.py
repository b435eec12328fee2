"""Kernel `sdpa`: torch's scaled_dot_product_attention on chunks of query rows, each against only
the columns that some row of the chunk visits. Nothing grows with n^2; MAX_PIECE bounds the memory.

All (head, chunk) pairs whose visited width falls into one size class form a piece. Its keys are
gathered for one call, after the keys of the sinks. On a CPU, without gradients, sinks and gaps, the
keys are read in place instead, by one call for each run of chunks, and a window keeps its
log-weights.
"""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from kernels.impl.reference import attend_exact, spread_of
from kernels.methods.weights import Weights

CHUNKS = (64, 128, 256)  # rows per chunk: larger chunks waste more of the causal triangle, but gather fewer keys
MAX_PIECE = 1 << 20  # pairs per piece: 4 MB of log-weights. More would fall out of the cache, fewer need more calls
MAX_KEPT = 1 << 24  # log-weights that a window keeps: 64 MB


def attend_sdpa(
    q, k, v, weights: Weights, *, scale: float, causal: bool, offset: int, gap: int, need_lse: bool,
    need_spread: bool = False,
):  # fmt: skip
    """Computes attention in pieces by torch's scaled_dot_product_attention.

    Args:
        need_lse: whether to compute the log-sum-exp, which is None otherwise.
        q, k, v, weights, scale, causal, offset, gap, need_spread: as in
            `kernels.impl.reference.attend_exact`.

    Returns:
        As `kernels.impl.reference.attend_exact`.

    Raises:
        ValueError: for `need_spread` with weights that have no two halves.
    """
    halves = weights.halves() if need_spread else ()
    if weights.by_score:
        return _attend_by_score(q, k, v, weights, scale=scale, causal=causal, offset=offset)
    batch, heads, queries, dim = q.shape
    tokens, device = k.shape[2] + gap, q.device
    out = torch.zeros(batch * heads * queries, dim, dtype=q.dtype, device=device)
    lse = torch.full((len(out),), -math.inf, device=device, dtype=_compute_dtype(q)) if need_lse else None
    spread = torch.zeros(len(out), device=device) if need_spread else None
    skip = min(max(0, -offset), queries)  # rows before the first token
    if skip < queries and k.shape[2]:
        pieces = _pieces(weights, offset + skip, offset + queries, tokens, causal, batch, device)
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if device.type == "cpu" and not (differentiated or weights.sinks or gap):
            inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
            results = [None if x is None else x.view(*q.shape[:3], -1) for x in (out, lse, spread)]
            for piece in pieces:
                _attend_in_place(inputs, (weights, *halves), piece, scale, causal, offset, results)
            return results[0], *(None if x is None else x[..., 0] for x in results[1:])
        flat = [x.reshape(-1, dim) for x in (q, k, v)]
        sinks = min(weights.sinks, tokens)
        for head, rows, end, size, _ in pieces:
            first = end - size
            slots = first[:, None] - gap + torch.arange(size, device=device)
            evicted = (slots < sinks)[:, None] if gap else None
            slots.clamp_min_(0)  # columns without a slot have no weight
            if sinks:
                slots = torch.cat([torch.arange(sinks, device=device).expand(len(head), -1), slots], -1)
            log_w = []
            for each in (weights, *halves):
                piece = each.log_piece(head, rows, first, size, causal)
                if evicted is not None:
                    piece = piece.masked_fill(evicted, -math.inf)
                log_w.append(torch.cat([each.log_sinks(head, rows, sinks, causal), piece], -1) if sinks else piece)
            _attend_piece(flat, head, rows - offset, slots, log_w, scale, q.shape, k.shape, (out, lse, spread))
    return out.view(q.shape), *(None if x is None else x.view(q.shape[:3]) for x in (lse, spread))


def _attend_by_score(q, k, v, weights: Weights, *, scale: float, causal: bool, offset: int):
    """Computes attention whose keys depend on the scores: all scores of a few rows at a time, as the
    kernel "exact" does. Arguments and results as of `attend_sdpa`, without a gap and a spread."""
    batch, heads, queries, _ = q.shape
    rows = max(1, MAX_PIECE // max(1, batch * heads * k.shape[2]))
    repeat, full = heads // k.shape[1], _compute_dtype(q)
    k, v = (x.to(full).repeat_interleave(repeat, 1) for x in (k, v))  # once for all pieces
    pieces = [
        attend_exact(
            q[:, :, first : first + rows], k, v, weights, scale=scale, causal=causal, offset=offset + first, gap=0
        )
        for first in range(0, queries, rows)
    ]
    out, lse = (torch.cat(parts, 2) for parts in list(zip(*pieces, strict=True))[:2]) if pieces else (q, q[..., 0])
    return out, lse, None


def _pieces(
    weights: Weights, begin: int, stop: int, tokens: int, causal: bool, batch: int, device: torch.device
) -> Iterator:
    """Yields pieces that cover every row of begin .. stop - 1 of every head once: heads (G,), rows
    (G, C), the column after the last one (G,), the number of columns to compute before it, equal
    for all G, and the number of visited columns (G,)."""
    for length, members, starts in _chunks(weights, begin, stop, device):
        head, first_row = (x.reshape(-1) for x in torch.meshgrid(members, starts, indexing="ij"))
        last_row = first_row + length - 1
        low = weights.reach(head, first_row[:, None])[0][:, 0]
        high = last_row if causal else weights.reach(head, last_row[:, None])[1][:, 0].clamp_max(tokens - 1)
        visited = high - low + 1
        width = _size_class(visited)
        for size in width.unique().tolist():
            alike = torch.nonzero(width == size)[:, 0]
            pairs = length * max((size + weights.sinks) * batch, weights.numbers_per_row)
            for some in alike.split(max(1, MAX_PIECE // pairs)):
                rows = first_row[some, None] + torch.arange(length, device=device)
                yield head[some], rows, high[some] + 1, size, visited[some]


def _chunks(weights: Weights, begin: int, stop: int, device: torch.device) -> Iterator:
    """Yields rows per chunk, heads, and first rows of their chunks. A chunk has about a quarter as
    many rows as a row of the head visits columns; the rows left over at the end make a smaller
    chunk, and few rows make one chunk."""
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


def _attend_in_place(inputs, weights, piece, scale, causal, offset, results):
    """Computes a piece of `_pieces` under each of `weights` without copying keys, and writes it to
    `results`, (B, H, Tq, D or 1) or None."""
    (q, k, v), (head, rows, end, size, visited) = inputs, piece
    length, repeat, keys = rows.shape[1], q.shape[1] // k.shape[1], k.shape[2]
    farthest = weights[0].tokens
    if farthest is None:
        log_w = [_as_bias(each.log_piece(head, rows, end - size, size, causal), q) for each in weights]
    for i, count, (h, row, stop, width) in _runs(head, rows[:, 0], end, visited, length, size):
        if farthest is None:
            bias = [x[:, i : i + count, :, size - width :] for x in log_w]
        else:
            most = min(int(farthest[h]) + stop - row, keys)
            bias = [_as_bias(_kept_piece(weights[0], h, length, stop - row, width, most, causal), q)]
        query = _rows_of(q, h, row - offset, length, length, count)
        key, value = (_rows_of(x, h // repeat, stop - width, width, length, count) for x in (k, v))
        parts = _attend(query, key, value, bias, scale, results[1] is not None)
        for whole, part in zip(results, parts, strict=True):
            if whole is not None:
                _rows_of(whole, h, row - offset, length, length, count).copy_(part.view(*part.shape[:3], -1))


def _rows_of(x: torch.Tensor, head: int, first: int, width: int, step: int, count: int) -> torch.Tensor:
    """View (B, count, width, D) of one head of x (B, H, T, D): `width` rows from each of `first`,
    `first` + `step`, and so on."""
    batch, heads, row, one = x.stride()
    start = x.storage_offset() + head * heads + first * row
    return x.as_strided((len(x), count, width, x.shape[3]), (batch, step * row, row, one), start)


def _runs(
    head: torch.Tensor, row: torch.Tensor, end: torch.Tensor, visited: torch.Tensor, length: int, size: int
) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yields runs of chunks of a piece, in which each chunk's rows and columns are those of the
    chunk before shifted by `length`: index of the first chunk, number of chunks, and (head, first
    row, column after the last, columns) of the first. All chunks of a run have as many columns."""
    chunks = list(zip(*(x.tolist() for x in (head, row, end, visited)), strict=True))
    begin = 0
    for i in range(1, len(chunks) + 1):
        h, first, stop, _ = chunks[i - 1]
        if i < len(chunks) and chunks[i][:3] == (h, first + length, stop + length):
            continue
        h, first, stop, _ = chunks[begin]
        width = min(size, _whole(max(chunk[3] for chunk in chunks[begin:i])))
        if width <= stop:
            yield begin, i - begin, (h, first, stop, width)
        else:  # near the first token some chunks have fewer columns
            for j in range(begin, i):
                yield j, 1, chunks[j]
        begin = i


def _kept_piece(
    weights: Weights, head: int, length: int, ahead: int, width: int, most: int, causal: bool
) -> torch.Tensor:
    """Log-weights of a chunk under weights that depend on the distance alone. They are the same
    wherever the chunk lies, and stay with the weights for other layers and calls.

    Args:
        length, width: rows and columns of the chunk.
        ahead: the column after its last less its first row.
        most: the largest `width` of such a chunk, to which the kept piece is computed.

    Returns: (1, length, width).
    """
    kept, key = vars(weights).setdefault("_log_pieces", {}), (head, length, ahead, causal)
    piece = kept.get(key)
    if piece is None or piece.shape[-1] < width:
        size = _whole(most)
        lasting = length * size <= MAX_KEPT // 4
        size = size if lasting else width
        rows = size - ahead + torch.arange(length)[None]
        with torch.inference_mode(False):
            piece = weights.log_piece(torch.tensor([head]), rows, torch.zeros(1, dtype=torch.long), size, causal)
        if lasting:
            if sum(x.numel() for x in kept.values()) + piece.numel() > MAX_KEPT:
                kept.clear()
            kept[key] = piece
    return piece[..., -width:]


def _attend_piece(flat, head, rows, slots, log_w, scale, q_shape, k_shape, results):
    """Computes rows (G, C) of q against slots (G, W) of k under the log-weights (G, C, W) of
    `log_w`. q, k and v are flattened to (-1, dim): index_select copies rows several times faster
    than indexing by (head, row)."""
    batch, heads, queries, dim = q_shape
    kv_heads, keys = k_shape[1:3]
    sequence = torch.arange(batch, device=rows.device)[:, None, None]
    query_index = (sequence * heads + head[:, None]) * queries + rows
    key_index = (sequence * kv_heads + (head * kv_heads // heads)[:, None]) * keys + slots
    out, lse, _ = results
    # on other devices torch needs the bias in q's dtype, whose precision may be too low
    dtype = out.dtype if out.device.type == "cpu" else _compute_dtype(out)
    query, key, value = (
        x.index_select(0, index.reshape(-1)).view(*index.shape, dim).to(dtype)
        for x, index in zip(flat, (query_index, key_index, key_index), strict=True)
    )
    query_index = query_index.reshape(-1)
    bias = [_as_bias(x, query) for x in log_w]
    for whole, part in zip(results, _attend(query, key, value, bias, scale, lse is not None), strict=True):
        if whole is not None:
            whole.index_copy_(0, query_index, part.reshape(len(query_index), *whole.shape[1:]).to(whole.dtype))


def _attend(query, key, value, bias, scale, need_lse):
    """Returns out (B, G, C, D) of query (B, G, C, D) and key, value (B, G, W, D) under the first of
    the log-weights (1, G or 1, C, W), its log-sum-exp if needed, and `spread_of` the two others, if
    any."""
    full = _compute_dtype(query)
    bias, *others = bias
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    lse = spread = None
    if need_lse:
        lse = torch.logsumexp(query.to(full) @ key.to(full).transpose(-1, -2) * scale + bias, dim=-1)
    if others:
        # on a CPU, further passes of torch take less time than scores computed once but written to
        # memory
        with torch.no_grad():
            query, key, value = (x.to(full) for x in (query, key, value))
            halves = (F.scaled_dot_product_attention(query, key, value, attn_mask=x, scale=scale) for x in others)
            spread = spread_of(*halves)
    return out, lse, spread


def _as_bias(log_w: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Log-weights (G, C, W) as torch takes them with q: (1, G, C, W)."""
    return log_w.to(_compute_dtype(q))[None]


def _compute_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _whole(width: int) -> int:
    """`width` rounded up to whole vectors, since other widths take longer."""
    return -(-width // 16) * 16


def _size_class(width: torch.Tensor) -> torch.Tensor:
    """Widths rounded up to 16, 20, 24, 28, 32, 40, 48, ...: at most a quarter is wasted, and few
    calls are made."""
    step = 2 ** (torch.ceil(torch.log2(width.clamp_min(16).double())).long() - 3)
    return (width.clamp_min(16) + step - 1) // step * step
