"""The top-k oracle against a formula that loops over rows and sorts their scores."""

import math

import pytest
import torch

from kernels import Alibi, TopK, attend
from kernels.impl import sdpa

SLOPES = torch.tensor([0.3, 1 / 16, 1 / 90, 1 / 200], dtype=torch.float64)


def inputs(queries, keys, kv_heads=4, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(batch, 4, queries, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch, kv_heads, keys, 8, generator=generator, dtype=torch.float64).unbind(0)
    return [x.to(dtype) for x in (q, k, v)]


def by_hand(q, k, v, count, *, sinks=0, near=0, causal=True):
    """Output, and visited (row, other key) pairs of each head, for one row of q after another."""
    batch, heads, queries, dim = q.shape
    out, pairs, offset = torch.zeros_like(q), torch.zeros(heads, dtype=torch.long), k.shape[2] - queries
    for b in range(batch):
        for h in range(heads):
            key, value = (x[b, h * x.shape[1] // heads] for x in (k, v))
            for r in range(queries):
                i = r + offset
                scores = {
                    j: float(q[b, h, r] @ key[j]) / math.sqrt(dim) - float(SLOPES[h]) * abs(i - j)
                    for j in range(i + 1 if causal else k.shape[2])
                }
                given = [j for j in scores if j == i or j < sinks or abs(i - j) < near]
                rest = sorted(set(scores) - set(given), key=lambda j: -scores[j])
                seen = given + rest[: count - 1]
                out[b, h, r] = (
                    torch.softmax(torch.tensor([scores[j] for j in seen], dtype=torch.float64), 0) @ value[seen]
                )
                pairs[h] += (len(seen) - 1) * (b == 0)
    return out, pairs


@pytest.mark.parametrize("kernel", ["exact", "sdpa", "auto"])
@pytest.mark.parametrize(
    "given",
    [
        {"count": 1},
        {"count": 5},
        {"count": 5, "kv_heads": 2, "near": 6, "sinks": 3},
        {"count": 3, "causal": False},
        {"count": 4, "queries": 3, "sinks": 50, "near": 1},
    ],
    ids=str,
)
def test_rows_see_their_best_keys_alone(kernel, given, monkeypatch):
    monkeypatch.setattr(sdpa, "MAX_PIECE", 7 * 2 * 4 * 45)  # 7 rows at a time
    q, k, v = inputs(given.get("queries", 45), 45, given.get("kv_heads", 4))
    options = {name: given[name] for name in ("sinks", "near") if name in given}
    causal = given.get("causal", True)
    weights = TopK(SLOPES, given["count"], **options)
    expected, pairs = by_hand(q, k, v, given["count"], causal=causal, **options)
    found, lse = attend(q, k, v, weights, kernel=kernel, causal=causal, return_lse=True)
    assert (found - expected).abs().max() < 1e-12
    assert lse.shape == q.shape[:3]
    if causal and q.shape[2] == k.shape[2]:
        assert torch.equal(weights.pairs(45), pairs)


@pytest.mark.parametrize("kernel", ["exact", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_as_many_keys_as_the_context_it_is_exact_alibi(kernel, dtype):
    q, k, v = inputs(60, 60, dtype=dtype)
    for keys in (60, 61, 1000):
        found = attend(q, k, v, TopK(SLOPES, keys), kernel=kernel)
        assert torch.equal(found, attend(q, k, v, Alibi(SLOPES), kernel="exact"))
    assert not torch.allclose(attend(q, k, v, TopK(SLOPES, 59), kernel=kernel), found, atol=1e-9)


def test_decoding_and_padding_give_the_rows_of_the_whole():
    q, k, v = inputs(40, 40)
    weights = TopK(SLOPES, 4, sinks=2)
    whole = attend(q, k, v, weights)
    for token in (0, 3, 39):
        row = attend(q[:, :, token : token + 1], k[:, :, : token + 1], v[:, :, : token + 1], weights)
        assert (row - whole[:, :, token : token + 1]).abs().max() < 1e-12
    padded = [torch.cat([torch.full_like(x[:, :, :9], math.nan), x], 2) for x in (q, k, v)]
    found = attend(*padded, weights, padding=torch.tensor([9, 9]))
    assert (found[:, :, 9:] - whole).abs().max() < 1e-12 and bool((found[:, :, :9] == 0).all())


def test_gradients_are_those_of_the_chosen_keys():
    q, k, v = (x.requires_grad_() for x in inputs(30, 30))
    _, k_fixed, v_fixed = (x.detach() for x in (q, k, v))
    want = torch.autograd.grad(attend(q, k, v, TopK(SLOPES, 4), kernel="sdpa").square().sum(), (q, k, v))
    for x, gradient in zip((q, k, v), want, strict=True):
        step = torch.zeros_like(x)
        step.view(-1)[::97] = 1e-6
        ends = []
        for sign in (1, -1):
            moved = [(y + sign * step if y is x else y).detach() for y in (q, k, v)]
            ends.append(attend(*moved, TopK(SLOPES, 4), kernel="exact").square().sum())
        assert float((ends[0] - ends[1]) / 2) == pytest.approx(float((gradient * step).sum()), rel=1e-5)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"kernel": "flex"}, "use kernel='sdpa' or 'exact'"),
        ({"gap": 8}, "weights that forget"),
        ({"return_spread": True}, "TopK has none"),
    ],
)
def test_what_needs_weights_beforehand_is_refused(options, said):
    q, k, v = inputs(20, 20, dtype=torch.float32)
    with pytest.raises(ValueError, match=said):
        attend(q, k, v, TopK(SLOPES, 4), **options)
    with pytest.raises(ValueError, match="no matrix of weights"):
        TopK(SLOPES, 4).matrix(5)
    with pytest.raises(ValueError, match="keys must be at least 1"):
        TopK(SLOPES, 0)
