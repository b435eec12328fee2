"""Kernel `exact`: dense attention by the definition, in fp32 or fp64. The oracle with which every
other kernel is compared."""

import math

import torch

from kernels.methods.weights import Weights


def bytes_needed(batch: int, heads: int, queries: int, keys: int, itemsize: int = 4) -> int:
    """Returns an upper estimate of the peak bytes of `attend_exact`: float64 log-weights, and a few
    copies of the scores.

    Args:
        batch, heads: B, H.
        queries, keys: rows of q and k.
        itemsize: bytes of a score.
    """
    return heads * queries * keys * (3 * 8 + 4 * batch * itemsize)


def attend_exact(
    q, k, v, weights: Weights, *, scale: float, causal: bool, offset: int, gap: int, need_spread: bool = False
):
    """Computes attention for sequences of one geometry, without padding of the keys, in fp64 for
    fp64 input and in fp32 otherwise.

    Args:
        q: (B, H, Tq, D).
        k, v: (B, Hkv, Tk, D).
        weights, scale, causal: as in `kernels.attend`.
        offset: token of q's first row; negative rows see no key.
        gap: number of tokens evicted from k and v after the sinks.
        need_spread: whether to compute the spread.

    Returns:
        out like q; the log-sum-exp (B, H, Tq) in the computing dtype; and, if `need_spread`, the
        `spread_of` the two halves of the masks (B, H, Tq), else None. Rows before token 0 give 0,
        -inf and 0.

    Raises:
        ValueError: for `need_spread` with weights that have no two halves.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    repeat = q.shape[1] // k.shape[1]
    k, v = (x.to(compute).repeat_interleave(repeat, dim=1) for x in (k, v))
    rows = offset + torch.arange(q.shape[2], device=q.device)
    columns = torch.arange(k.shape[2], device=q.device)
    columns[weights.sinks :] += gap
    # Padding rows may contain NaN; compute them as token 0, because a row with no visible key would
    # have NaN gradients.
    padding = rows < 0
    queries = q.to(compute).masked_fill(padding[:, None], 0.0)
    score = queries @ k.transpose(-1, -2) * scale

    def under(weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
        log_w = weights.log_dense(rows.clamp_min(0), columns)
        if causal:
            log_w = log_w.masked_fill(columns[None, :] > rows.clamp_min(0)[:, None], -math.inf)
        weighed = weights.keep(score + log_w.to(compute), rows.clamp_min(0), columns)
        lse = torch.logsumexp(weighed, dim=-1)
        return torch.exp(weighed - lse[..., None]) @ v, lse  # every row sees itself

    out, lse = under(weights)
    spread = None
    if need_spread:
        with torch.no_grad():
            spread = spread_of(*(under(half)[0] for half in weights.halves())).masked_fill(padding, 0.0)
    return out.masked_fill(padding[:, None], 0.0).to(q.dtype), lse.masked_fill(padding, -math.inf), spread


def spread_of(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sampling error of each row, (...) float32, from the outputs (..., D) under the two halves
    of its masks: half their difference, root mean square over the head dimension. `kernels.attend`
    says what it estimates."""
    return ((one - other) / 2).square().mean(-1).sqrt().float()
