"""The one entry to all kernels: checks, padding and offsets, dispatch."""

from typing import Literal, TypedDict, Unpack, overload

import torch

from kernels.auto import choose
from kernels.impl.geometry import check_geometry, geometry_of_call, geometry_of_tensor
from kernels.impl.reference import attend_exact
from kernels.impl.sdpa import attend_sdpa
from kernels.methods.weights import Weights

KERNELS = ("auto", "exact", "sdpa", "flex", "triton")


class CallOptions(TypedDict, total=False):
    """The options of `attend` on which the number of its results does not depend."""

    scale: float | None
    causal: bool
    kernel: str
    q_offset: int | torch.Tensor | None
    padding: torch.Tensor | None
    gap: int | torch.Tensor
    places: torch.Tensor | None


@overload
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, *, return_lse: Literal[False] = ...,
    return_spread: Literal[False] = ..., **options: Unpack[CallOptions],
) -> torch.Tensor: ...  # fmt: skip
@overload
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, *, return_lse: Literal[True],
    return_spread: Literal[False] = ..., **options: Unpack[CallOptions],
) -> tuple[torch.Tensor, torch.Tensor]: ...  # fmt: skip
@overload
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, *, return_lse: Literal[False] = ...,
    return_spread: Literal[True], **options: Unpack[CallOptions],
) -> tuple[torch.Tensor, torch.Tensor]: ...  # fmt: skip
@overload
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, *, return_lse: Literal[True],
    return_spread: Literal[True], **options: Unpack[CallOptions],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...  # fmt: skip
@overload
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, *, return_lse: bool = ...,
    return_spread: bool = ..., **options: Unpack[CallOptions],
) -> torch.Tensor | tuple[torch.Tensor, ...]: ...  # fmt: skip
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
    """Computes attention under `weights`: row-normalised ``exp(q.k * scale) * w`` times v.

    Args:
        q: (batch, heads, queries, head_dim).
        k: (batch, kv_heads, keys, head_dim), with kv_heads dividing heads.
        v: like k.
        weights: `Alibi`, `Window`, `PositionalLSH` or `TopK`, with one slope for each query head.
        scale: factor of the scores, 1/sqrt(head_dim) by default.
        causal: whether a query sees no key after it.
        kernel: "exact" (dense, fp32 or fp64), "sdpa" (visited pairs only), "flex" (FlexAttention,
            compiled at the first call of a kind), "triton" (one fused pass, on a GPU), or "auto":
            triton on a GPU if it supports the call and its first call of the kind agrees with the
            oracle, else sdpa (`kernels.auto`).
        q_offset: token coordinate of q's first row, one number or (batch,). The default is keys -
            queries - padding + gap, as in decoding with a cache. The queries must lie among the
            keys; negative coordinates are padding.
        padding: (batch,), the number of leading slots of k that are padding. Token coordinates
            count from the first real token, so that a padded sequence equals the sequence alone.
            Rows of padding give 0.
        gap: number of evicted tokens, an int or (batch,): k and v hold the first `weights.sinks`
            tokens, then resume at token sinks + gap. Causal only. Queries must come after the gap
            and never attend into it; the result is exact if no token in the gap is within
            `weights.reach` of the first query.
        places: padding, q_offset and, if tokens were evicted, gap, as the rows of one tensor of
            whole numbers (2 or 3, batch), in place of the three arguments. A CUDA tensor is neither
            read on the host nor checked, so that a CUDA graph of the call reads it at every
            replay. int32 on q's device needs no conversion.
        return_lse: whether to also return the log-sum-exp of each row, (batch, heads, queries), in
            float32 or float64 as computed; -inf in a row of padding.
        return_spread: whether to also return the sampling error of each row, (batch, heads,
            queries) float32: an estimate of the standard deviation of `out` over draws of the
            masks, root mean square over head_dim; 0 in a row of padding. No gradient flows through
            it. Needs an even number of masks of the sampler "gamma", weights "count" or "rb", and
            the kernel "exact" or "sdpa", which "auto" then chooses.

    Returns:
        out, (batch, heads, queries, head_dim) in q's dtype; or a tuple of out and of the
        log-sum-exp and the spread, where they were asked for.

    Raises:
        ValueError: for arguments that do not fit together or that the kernel does not support; the
            message says what to change.

    The spread: with out_A and out_B the outputs under the first and the second half of the masks,
    each normalised by itself and with the weights of S/2 masks, ``spread = sqrt(mean over head_dim
    of (out_A - out_B)^2) / 2``. out_A and out_B are independent and identically distributed.

    * "count": w is the mean of the halves' weights, so that to first order in their deviations out
      is the mean of out_A and out_B, and ``Var out = E (out_A - out_B)^2 / 4``. This holds although
      the normaliser varies: the error of a ratio is linear in its numerator and denominator. With
      few masks, terms of second order make the spread too large.
    * "rb": the spread bounds the standard deviation from above, to first order. The weights of two
      keys on one side have the covariance ``L L' f_S``, f_S = 1/P - 1 at the nearer key, where P =
      1 - (1 - L)^S is its probability of being covered; and ``f_(S/2) / 2 - f_S = a / (2 + 2 a)``
      with a = (1 - L)^(S/2) is not negative and grows with distance. If scores do not depend on
      distance and values are uncorrelated, the variance is proportional to ``sum_d L^2 f_S``, for
      many masks to 1/S^2: the spread is then up to sqrt(2) too large.

    The spread of one row rests on one difference, and misses a key that outweighs all others but is
    covered by no mask of the draw: average squares over rows.
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
        geometry, largest_gap = geometry_of_call(q, keys, padding, q_offset, gap)
    elif padding is None and q_offset is None and not isinstance(gap, torch.Tensor) and gap == 0:
        geometry, largest_gap = geometry_of_tensor(places, len(q))
    else:
        raise ValueError("places replace padding, q_offset and gap: pass either places or the others.")
    gapped = len(geometry) == 3
    if gapped and (not causal or weights.span is None):
        raise ValueError("A gap needs causal=True and weights that forget (Window, PositionalLSH): pass every key.")
    if return_spread and kernel in ("flex", "triton"):
        raise ValueError(f"kernel={kernel!r} gives no spread: use kernel='sdpa' or 'exact'.")
    if kernel == "auto":
        kernel = "sdpa" if return_spread else choose(q, k, v, weights, causal, gapped, attend)
    if kernel == "triton":
        from kernels.impl.triton.attend import attend_triton, unsupported_call  # triton exists on Linux only

        if reason := unsupported_call(q, weights):
            raise ValueError(reason)
        out, lse = attend_triton(q, k, v, weights, scale=scale, causal=causal, geometry=geometry, gap=largest_gap)
        return (out, lse) if return_lse else out
    sequences = list(zip(*check_geometry(geometry, queries, keys, weights.sinks), strict=True))

    def compute(
        rows: list[int] | slice, pad: int, start: int, gap: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """out, lse and spread of the sequences `rows`, whose geometry is the same."""
        inputs = (q[rows], k[rows][:, :, pad:], v[rows][:, :, pad:])
        if kernel == "exact":
            return attend_exact(
                *inputs, weights, scale=scale, causal=causal, offset=start, gap=gap, need_spread=return_spread
            )
        if kernel == "flex":
            from kernels.impl.flex import attend_flex  # its import takes seconds

            out, lse = attend_flex(
                *inputs, weights, scale=scale, causal=causal, offset=start, gap=gap, need_lse=return_lse
            )
            return out, lse, None
        return attend_sdpa(
            *inputs, weights, scale=scale, causal=causal, offset=start, gap=gap, need_lse=return_lse,
            need_spread=return_spread,
        )  # fmt: skip

    if len(set(sequences)) == 1:
        results = compute(slice(None), *sequences[0])
    else:
        full = torch.float64 if q.dtype == torch.float64 else torch.float32
        results = (
            torch.empty_like(q),
            q.new_empty(q.shape[:3], dtype=full),
            q.new_empty(q.shape[:3], dtype=torch.float32),
        )
        for sequence in sorted(set(sequences)):
            rows = [i for i, other in enumerate(sequences) if other == sequence]
            for whole, part in zip(results, compute(rows, *sequence), strict=True):
                if part is not None:
                    whole[rows] = part
    out, lse, spread = results
    extra = [x for x, asked in ((lse, return_lse), (spread, return_spread)) if asked and x is not None]
    return (out, *extra) if extra else out


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, kernel: str) -> None:
    """Raises ValueError unless the shapes, dtypes, devices and weights fit together."""
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
