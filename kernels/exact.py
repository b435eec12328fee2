"""Kernel `exact`: dense attention by the definition, in fp32 or fp64. The oracle that every other kernel is held to."""

import math

import torch

from kernels.weights import Weights


def bytes_needed(batch: int, heads: int, queries: int, keys: int, itemsize: int = 4) -> int:
    """Peak bytes of `attend_exact`, an upper estimate: float64 log-weights and the scores in a few copies."""
    return heads * queries * keys * (3 * 8 + 4 * batch * itemsize)


def attend_exact(q, k, v, weights: Weights, *, scale: float, causal: bool, offset: int, gap: int):
    """One group of sequences without padding: q (B, H, Tq, D), k and v (B, Hkv, Tk, D), `offset` the token of q's first
    row (negative rows see nothing), `gap` the tokens left out of k and v after the sinks. Computes in fp64 for fp64
    input, in fp32 otherwise.

    Returns: out like q, and the log-sum-exp (B, H, Tq) in the computing dtype; rows before 0 give 0 and -inf.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    repeat = q.shape[1] // k.shape[1]
    k, v = (x.to(compute).repeat_interleave(repeat, dim=1) for x in (k, v))
    rows = offset + torch.arange(q.shape[2], device=q.device)
    columns = torch.arange(k.shape[2], device=q.device)
    columns[weights.sinks :] += gap
    log_w = weights.log_dense(rows.clamp_min(0), columns)
    if causal:
        log_w = log_w.masked_fill(columns[None, :] > rows.clamp_min(0)[:, None], -math.inf)
    # rows of padding may hold anything, NaN included, and are computed as token 0: of a row that sees nothing the
    # gradients would be NaN
    padding = rows < 0
    own = q.to(compute).masked_fill(padding[:, None], 0.0)
    score = own @ k.transpose(-1, -2) * scale + log_w.to(compute)
    lse = torch.logsumexp(score, dim=-1)
    out = torch.exp(score - lse[..., None]) @ v  # every row sees itself
    return out.masked_fill(padding[:, None], 0.0).to(q.dtype), lse.masked_fill(padding, -math.inf)
