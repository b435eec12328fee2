"""The one entry to all kernels: checks, padding and offsets, dispatch."""

import torch

from kernels.auto import choose
from kernels.impl.geometry import check_places, held_places, places_of
from kernels.impl.reference import attend_exact
from kernels.impl.sdpa import attend_sdpa
from kernels.methods.weights import Weights

KERNELS = ("auto", "exact", "sdpa", "flex", "triton")


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: Weights,
    *,
    scale: float | None = None,
    causal: bool = True,
    kernel: str = "auto",
    q_offset: int | torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
    gap: int | torch.Tensor = 0,
    places: torch.Tensor | None = None,
    return_lse: bool = False,
    return_spread: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Attention under `weights`: row-normalised ``exp(q.k * scale) * w`` times v.

    Args:
        q: (batch, heads, queries, head_dim); k, v: (batch, kv_heads, keys, head_dim), kv_heads
            dividing heads.
        scale: default 1/sqrt(head_dim).
        kernel: "exact" (dense, fp32 or fp64), "sdpa" (visited pairs only), "flex" (FlexAttention,
            compiled at the first call of a kind), "triton" (one fused pass, on a GPU), "auto"
            (triton on a GPU where it can do the call and its first one of the kind agrees with the
            oracle, else sdpa: `kernels.auto`).
        q_offset: token coordinate of q's first row, one number or (batch,); default keys - queries
            - padding + gap, as in decoding with a cache. The queries must lie among the keys;
            negative coordinates are padding.
        padding: (batch,) how many leading slots of k are padding. Token coordinates count from the
            first real token, so a padded row equals the same row alone. Rows of padding give 0.
        gap: how many tokens k and v leave out after the sinks, one number or (batch,): a cache that
            has dropped what no row will reach again holds the first `weights.sinks` tokens, then
            token sinks + gap and all after it. Causal only, and every query comes after what is
            left out, which it does not see: the result is that of all keys where nothing is left
            out that the first query reaches (`weights.reach`).
        places: padding, q_offset and, where keys are left out, gap, as the rows of one tensor (2 or
            3, batch) of whole numbers, in place of the three. Those of a CUDA tensor are not looked
            at on the host and so not checked: a CUDA graph that holds the call reads them at every
            replay. int32 on q's device is taken as it is.
        return_lse: also return the log-sum-exp of each row, (batch, heads, queries), float32 or
            float64 as computed; -inf in a row of padding.
        return_spread: also return the sampling error of each row, (batch, heads, queries) float32:
            an estimate of the standard deviation of `out` over draws of the masks, root mean square
            over head_dim; 0 in a row of padding. No gradient flows through it. Needs an even number
            of masks of the sampler "gamma", weights "count" or "rb", and the kernel "exact" or
            "sdpa", which "auto" then chooses.

            With out_A and out_B the outputs under the first and the second half of the masks, each
            normalised by itself and with the weights of S/2 masks, ``spread = sqrt(mean over
            head_dim of (out_A - out_B)^2) / 2``. out_A and out_B are independent and have one law.
            For "count", w is the mean of the halves' weights, so that to first order in their
            deviations out is the mean of out_A and out_B, and ``Var out = E (out_A - out_B)^2 /
            4``, also where the normaliser varies: a ratio's error is linear in its numerator and
            denominator. Few masks leave terms of second order, which make the spread too large. For
            "rb" it bounds the standard deviation from above, to first order: of two keys on one
            side the weights have the covariance ``L L' f_S``, f_S = 1/P - 1 at the nearer key, P =
            1 - (1 - L)^S its probability of being covered, and ``f_(S/2) / 2 - f_S = a / (2 + 2
            a)`` with a = (1 - L)^(S/2) is not negative and grows with distance. Where scores do not
            depend on distance and values are uncorrelated the variance is proportional to ``sum_d
            L^2 f_S``, for many masks to 1/S^2: there the spread is up to sqrt(2) too large. One
            row's spread rests on one difference, and a key that outweighs all others but is covered
            by no mask of the draw is not in it: average squares over rows.

    Returns: out (batch, heads, queries, head_dim) in q's dtype, or a tuple of out, lse, spread, as
        far as asked for. Raises ValueError with what to change.
    """
    if q.device.type != "meta" and torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):  # the dtype of q, k and v says what is computed in
            return attend(
                q, k, v, weights, scale=scale, causal=causal, kernel=kernel, q_offset=q_offset, padding=padding,
                gap=gap, places=places, return_lse=return_lse, return_spread=return_spread,
            )  # fmt: skip
    _check(q, k, v, weights, kernel)
    queries, keys = q.shape[2], k.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    if places is None:
        where, most = places_of(q, keys, padding, q_offset, gap)
    elif padding is None and q_offset is None and not isinstance(gap, torch.Tensor) and gap == 0:
        where, most = held_places(places, len(q))
    else:
        raise ValueError("places say what padding, q_offset and gap would: pass the one or the others.")
    gapped = len(where) == 3
    if gapped and (not causal or weights.span is None):
        raise ValueError("A gap needs causal=True and weights that forget (Window, PositionalLSH): pass every key.")
    if return_spread and kernel in ("flex", "triton"):
        raise ValueError(f"kernel={kernel!r} gives no spread: use kernel='sdpa' or 'exact'.")
    if kernel == "auto":
        kernel = "sdpa" if return_spread else choose(q, k, v, weights, causal, gapped, attend)
    if kernel == "triton":
        from kernels.impl.triton.attend import attend_triton, obstacle  # triton exists on Linux only

        if reason := obstacle(q, weights):
            raise ValueError(reason)
        out, lse = attend_triton(q, k, v, weights, scale=scale, causal=causal, places=where, gap=most)
        return (out, lse) if return_lse else out
    each = list(zip(*check_places(where, queries, keys, weights.sinks), strict=True))

    def group(rows: list[int] | slice, pad: int, start: int, left_out: int) -> tuple[torch.Tensor | None, ...]:
        """out, lse and spread."""
        inputs = (q[rows], k[rows][:, :, pad:], v[rows][:, :, pad:])
        options = {"scale": scale, "causal": causal, "offset": start, "gap": left_out}
        if kernel == "exact":
            return attend_exact(*inputs, weights, **options, need_spread=return_spread)
        if kernel == "flex":
            from kernels.impl.flex import attend_flex  # its import takes seconds

            return *attend_flex(*inputs, weights, **options, need_lse=return_lse), None
        return attend_sdpa(*inputs, weights, **options, need_lse=return_lse, need_spread=return_spread)

    if len(set(each)) == 1:
        found = group(slice(None), *each[0])
    else:
        full = torch.float64 if q.dtype == torch.float64 else torch.float32
        found = torch.empty_like(q), *(q.new_empty(q.shape[:3], dtype=x) for x in (full, torch.float32))
        for place in sorted(set(each)):
            rows = [i for i, p in enumerate(each) if p == place]
            for whole, part in zip(found, group(rows, *place), strict=True):
                if part is not None:
                    whole[rows] = part
    out, lse, spread = found
    asked = (out, *[lse] * return_lse, *[spread] * return_spread)
    return asked if len(asked) > 1 else out


def _check(q, k, v, weights, kernel):
    if kernel not in KERNELS:
        raise ValueError(f"Unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}.")
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "q must be (batch, heads, queries, head_dim) and k, v (batch, kv_heads, keys, head_dim); got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    if not (len(q) and k.shape[1] and q.shape[3]):
        raise ValueError(f"Batch, heads and head_dim must be at least 1; got {tuple(q.shape)} and {tuple(k.shape)}.")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device; got {q.device}, {k.device}, {v.device}.")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key heads do not divide {q.shape[1]} query heads.")
    if not isinstance(weights, Weights):
        raise ValueError(f"weights must be Alibi(...), Window(...) or PositionalLSH.draw(...), not {weights!r}.")
    if q.shape[1] != weights.heads:
        raise ValueError(f"The weights have {weights.heads} slopes, q has {q.shape[1]} heads.")
    if not q.is_floating_point() or q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"q, k and v must share one floating dtype; got {q.dtype}, {k.dtype}, {v.dtype}.")
