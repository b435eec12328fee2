"""The oracle against formulas written out here: bias matrices, buckets in exact arithmetic, softmax
row by row."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels import Alibi, PositionalLSH, Window, alibi_slopes, attend

SLOPES = torch.tensor([0.5, 0.07, 0.011], dtype=torch.float64)


def inputs(heads=3, tokens=37, dim=8, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, tokens, dim, dtype=torch.float64, generator=generator) for _ in range(3)]


def loops(q, k, v, weight, causal=True):
    """Attention of one head, (tokens, dim) arrays, by loops over rows and keys; weight(i, j) is
    L'[i, j]."""
    out, lse = np.zeros_like(q), np.zeros(len(q))
    for i in range(len(q)):
        terms = {}
        for j in range(i + 1 if causal else len(k)):
            w = weight(i, j)
            if w > 0:
                terms[j] = w * math.exp(float(q[i] @ k[j]) / math.sqrt(q.shape[1]))
        total = math.fsum(terms.values())
        out[i] = sum(term / total * v[j] for j, term in terms.items())
        lse[i] = math.log(total)
    return out, lse


def explicit_weight(weights, head):
    """L'[i, j] of a head from the masks' numbers alone, buckets in rational arithmetic."""
    slope = float(weights.slopes[head])
    if weights.sinks or weights.near:
        beyond = explicit_weight(replace(weights, sinks=0, near=0), head)
        exact = lambda i, j: j < weights.sinks or abs(i - j) < weights.near  # noqa: E731
        return lambda i, j: math.exp(-slope * abs(i - j)) if exact(i, j) else beyond(i, j)
    if isinstance(weights, Alibi):
        return lambda i, j: math.exp(-slope * abs(i - j))
    if isinstance(weights, Window):
        return lambda i, j: math.exp(-slope * abs(i - j)) if slope * abs(i - j) <= weights.cutoff else 0.0
    width = [Fraction(x) for x in weights.masks.width[head].tolist()]
    shift = [Fraction(x) for x in weights.masks.shift[head].tolist()]
    bonus = [math.exp(x) for x in weights.masks.log_weight[head].tolist()]
    count = len(width)

    def weight(i, j):
        shared = [s for s in range(count) if (i - shift[s]) // width[s] == (j - shift[s]) // width[s]]
        if weights.weights == "count":
            return sum(bonus[s] for s in shared) / count
        plain = math.exp(-slope * abs(i - j))
        if not shared or weights.weights == "exact":
            return plain if shared else 0.0
        return plain / (1 - (1 - plain) ** count)

    return weight


RULES = {
    "alibi": Alibi(SLOPES),
    "window": Window(SLOPES, 1.3),
    "count": PositionalLSH.draw(SLOPES, 5, seed=3),
    "rb": PositionalLSH.draw(SLOPES, 5, seed=3, weights="rb"),
    "exact": PositionalLSH.draw(SLOPES, 5, seed=3, weights="exact"),
    "systematic": PositionalLSH.draw(SLOPES, 4, seed=3, sampler="systematic"),
    "fixed": PositionalLSH.draw(SLOPES, 2, seed=3, sampler="fixed"),
    "window with a near field": Window(SLOPES, 1.3, near=9),
    "sliding window": Window(SLOPES, 0.0, near=9),
    "count with a near field": PositionalLSH.draw(SLOPES, 5, seed=3, near=9),
    "rb with sinks and a near field": PositionalLSH.draw(SLOPES, 5, seed=3, weights="rb", sinks=2, near=6),
    "systematic with a near field": PositionalLSH.draw(SLOPES, 4, seed=3, sampler="systematic", near=3),
    "exact with a near field": PositionalLSH.draw(SLOPES, 5, seed=3, weights="exact", near=100),
    "window with sinks": Window(SLOPES, 1.3, sinks=2),
    "count with sinks": PositionalLSH.draw(SLOPES, 5, seed=3, sinks=11),
    "rb with sinks": PositionalLSH.draw(SLOPES, 5, seed=3, weights="rb", sinks=2),
    "exact with sinks": PositionalLSH.draw(SLOPES, 5, seed=3, weights="exact", sinks=100),
}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("rule", RULES)
def test_oracle_equals_loops_over_rows_and_keys(rule, causal):
    weights = RULES[rule]
    q, k, v = inputs(batch=1)
    out, lse = attend(q, k, v, weights, kernel="exact", causal=causal, return_lse=True)
    for head in range(3):
        arrays = [x[0, head].numpy() for x in (q, k, v)]
        want, want_lse = loops(*arrays, explicit_weight(weights, head), causal)
        assert np.abs(out[0, head].numpy() - want).max() < 1e-12
        assert np.abs(lse[0, head].numpy() - want_lse).max() < 1e-12


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
def test_exact_alibi_equals_torch_with_an_explicit_bias(causal):
    slopes = alibi_slopes(6)
    q, k, v = inputs(heads=6, tokens=65)
    distance = np.abs(np.subtract.outer(np.arange(65), np.arange(65)))
    bias = torch.from_numpy(-slopes.numpy()[:, None, None] * distance)
    if causal:
        bias = bias.masked_fill(torch.ones(65, 65, dtype=torch.bool).triu(1), -math.inf)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    assert (attend(q, k, v, Alibi(slopes), kernel="exact", causal=causal) - want).abs().max() < 1e-12


@pytest.mark.parametrize("sampler", ["gamma", "systematic", "fixed"])
def test_buckets_and_blocks_equal_exact_arithmetic(sampler):
    slopes = torch.tensor([8.0, 0.25, 2.0**-16], dtype=torch.float64)  # dyadic: "fixed" has ties at others
    masks = PositionalLSH.draw(slopes, 4, seed=5, sampler=sampler).masks
    places = [0, 1, 2, 63, 64, 1000, 99_999, 1_000_003]
    rows = torch.tensor(places)[None].expand(3, -1)
    bucket = masks.bucket(torch.arange(3), rows)
    start, end = masks.starts(torch.arange(3), rows), masks.ends(torch.arange(3), rows)
    for head in range(3):
        for at, i in enumerate(places):
            for s in range(4):
                width, shift = Fraction(float(masks.width[head, s])), Fraction(float(masks.shift[head, s]))
                own = (i - shift) // width
                assert int(bucket[head, at, s]) == own
                assert int(start[head, at, s]) == max(0, math.ceil(shift + own * width))
                assert int(end[head, at, s]) == math.ceil(shift + (own + 1) * width)


def test_shared_key_heads_equal_repeated_ones():
    q, k, v = inputs(heads=6)
    weights = Alibi(alibi_slopes(6))
    grouped = attend(q, k[:, :2], v[:, :2], weights, kernel="exact")
    blocks, turns = [0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]
    assert torch.equal(grouped, attend(q, k[:, blocks], v[:, blocks], weights, kernel="exact"))
    assert not torch.allclose(grouped, attend(q, k[:, turns], v[:, turns], weights, kernel="exact"))


@pytest.mark.parametrize("kernel", ["exact", "sdpa"])
@pytest.mark.parametrize("rule", ["alibi", "window", "count", "rb"])
def test_padded_sequence_equals_the_sequence_alone(rule, kernel):
    q, k, v = inputs()
    out, lse = attend(q, k, v, RULES[rule], kernel=kernel, padding=torch.tensor([0, 12]), return_lse=True)
    unpadded, unpadded_lse = attend(*(x[1:, :, 12:] for x in (q, k, v)), RULES[rule], kernel=kernel, return_lse=True)
    assert (out[1:, :, 12:] - unpadded).abs().max() < 1e-12
    assert (lse[1:, :, 12:] - unpadded_lse).abs().max() < 1e-12
    assert bool((out[1, :, :12] == 0).all()) and bool((lse[1, :, :12] == -math.inf).all())


def test_gradients_of_a_padded_sequence_equal_those_of_the_sequence_alone():
    """Also those of its padding, which are zero and no NaN, whatever lies there."""
    q, k, v = (x.requires_grad_() for x in inputs())
    grad_out = torch.linspace(-1, 1, q.numel(), dtype=q.dtype).view_as(q)
    for weights in RULES.values():
        out, lse = attend(q, k, v, weights, kernel="exact", padding=torch.tensor([0, 12]), return_lse=True)
        gradients = torch.autograd.grad((out * grad_out).sum() + lse[1, :, 12:].sum(), (q, k, v))
        some = [x[1:, :, 12:].detach().requires_grad_() for x in (q, k, v)]
        out, lse = attend(*some, weights, kernel="exact", return_lse=True)
        unpadded = torch.autograd.grad((out * grad_out[1:, :, 12:]).sum() + lse.sum(), some)
        for got, true in zip(gradients, unpadded, strict=True):
            assert (got[1:, :, 12:] - true).abs().max() < 1e-12
            assert bool((got[1, :, :12] == 0).all())


@pytest.mark.parametrize("kernel", ["exact", "sdpa"])
def test_autocast_takes_no_precision(kernel):
    """What is computed in is q's own dtype: an oracle in bfloat16 would be none."""
    q, k, v = (x.float() for x in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, RULES["rb"], kernel=kernel)
    assert torch.equal(out, attend(q, k, v, RULES["rb"], kernel=kernel))


@pytest.mark.parametrize("weights", ["count", "rb", "exact"])
def test_blocks_longer_than_32_bits_of_tokens(weights):
    masks = PositionalLSH.draw(torch.tensor([1e-9, 3e-10, 1e-11]), 4, seed=0, weights=weights)
    assert (masks.masks.width > 2**31).any()
    exact, sdpa = (attend(*inputs(), masks, kernel=kernel, causal=False) for kernel in ("exact", "sdpa"))
    assert (sdpa - exact).abs().max() < 1e-6


@pytest.mark.parametrize("kernel", ["exact", "sdpa"])
def test_offset_counts_tokens_not_slots(kernel):
    """The same tokens asked for by one offset, whatever the padding before them."""
    q, k, v = inputs()
    whole = attend(q, k, v, RULES["count"], kernel=kernel, padding=torch.tensor([0, 12]))
    shifted = torch.stack([q[0, :, 5:9], q[1, :, 17:21]])
    for offset in (5, torch.tensor([5, 5])):
        part = attend(shifted, k, v, RULES["count"], kernel=kernel, padding=torch.tensor([0, 12]), q_offset=offset)
        assert (part[0] - whole[0, :, 5:9]).abs().max() < 1e-12
        assert (part[1] - whole[1, :, 17:21]).abs().max() < 1e-12


@pytest.mark.parametrize("kernel", ["exact", "sdpa"])
def test_rows_of_a_middle_chunk_equal_the_whole(kernel):
    q, k, v = inputs()
    for weights in RULES.values():
        whole = attend(q, k, v, weights, kernel=kernel)
        chunk = attend(q[:, :, 9:20], k, v, weights, kernel=kernel, q_offset=9)
        assert (chunk - whole[:, :, 9:20]).abs().max() < 1e-12


def test_shapes_alone_are_computed_on_the_meta_device():
    q, k, v = (x.to("meta") for x in inputs())
    assert attend(q, k, v, RULES["alibi"], kernel="exact").shape == q.shape
