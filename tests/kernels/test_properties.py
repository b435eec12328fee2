"""What must hold of every draw and every kernel, whatever the numbers: structure, streaming,
merging, gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from kernels import Alibi, PositionalLSH, Window, attend
from kernels.impl import sdpa
from kernels.methods.masks import Masks
from tests.kernels.cases import KERNELS

SLOPES = torch.tensor([0.4, 1 / 16, 1 / 50], dtype=torch.float64)
SAMPLERS = ["gamma", "systematic", "fixed"]
DRAWS = [("gamma", "count"), ("gamma", "rb"), ("gamma", "exact"), ("systematic", "count"), ("fixed", "count")]
ALL_KERNELS = ["exact", *KERNELS]
CLOSE = 2e-6  # all inputs here are float64, but kernels other than the oracle keep log-weights in float32


def lsh(sampler="gamma", weights="count", masks=16, **keys):
    return PositionalLSH.draw(SLOPES, masks, **{"seed": 7, "sampler": sampler, "weights": weights, **keys})


def by_hand(width, shift, weights="count"):
    """The same masks for every head of SLOPES."""
    columns = [torch.tensor(x, dtype=torch.float64).expand(len(SLOPES), -1) for x in (width, shift)]
    return PositionalLSH(SLOPES, Masks(*columns, torch.zeros_like(columns[0])), "gamma", weights)


def inputs(tokens=150, dim=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, len(SLOPES), tokens, dim, generator=generator).to(dtype) for _ in range(3)]


def codes(weights):
    """One-hot codes of every token's bucket in each mask, side by side: (H, tokens, S * buckets)."""
    rows = torch.arange(150).expand(len(SLOPES), -1)
    bucket = weights.masks.bucket(torch.arange(len(SLOPES)), rows).long()
    bucket = bucket - bucket.amin((1, 2), keepdim=True)
    return F.one_hot(bucket).flatten(2).double()


def test_one_hot_codes_of_buckets_are_an_embedding_of_the_count():
    weights = lsh()
    code = codes(weights) / math.sqrt(weights.count)
    torch.testing.assert_close(code @ code.mT, weights.matrix(150))


def test_codes_beside_queries_and_keys_become_the_mask():
    """Scores q.k + c M without mask or bias: at c = 60 other keys have the weight exp(-60)."""
    weights, (q, k, v), c = lsh(masks=1), inputs(), 60.0
    position = math.sqrt(c) * codes(weights)[None]
    query, key = (torch.cat([x, position], 3) for x in (q * 8**-0.5, k))
    embedded = F.scaled_dot_product_attention(query, key, v, scale=1.0, is_causal=True)
    torch.testing.assert_close(embedded, attend(q, k, v, weights, kernel="exact"), atol=1e-9, rtol=1e-9)


def passes(weights):
    """Each mask of a draw as attention of its own."""
    for s in range(weights.count):
        yield PositionalLSH(weights.slopes, weights.masks.some(slice(s, s + 1)), weights.sampler, "count")


def merge(parts):
    """Log-sum-exp merge of [(out, lse)], the weights being the mean of the parts'."""
    out, lse = (torch.stack(x) for x in zip(*parts, strict=True))
    total = torch.logsumexp(lse, 0)
    return ((lse - total).exp()[..., None] * out).sum(0), total - math.log(len(parts))


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("sampler, kind", DRAWS)
def test_rows_sum_to_one_are_not_negative_and_never_look_ahead(sampler, kind, kernel):
    q, k, _ = inputs(tokens=70, dim=70)
    identity = torch.eye(70, dtype=q.dtype).expand_as(q)
    attention = attend(q, k, identity, lsh(sampler, kind), kernel=kernel)
    assert bool((attention >= 0).all()) and (attention.sum(-1) - 1).abs().max() < 1e-12
    assert bool((attention.triu(1) == 0).all())


@pytest.mark.parametrize("sampler, kind", DRAWS)
def test_a_token_always_sees_itself(sampler, kind):
    diagonal = lsh(sampler, kind).matrix(90).diagonal(dim1=1, dim2=2)
    assert bool((diagonal > 0).all())
    if sampler != "systematic":
        assert (diagonal - 1).abs().max() < 1e-12


@pytest.mark.parametrize("sampler, kind", [d for d in DRAWS if d[1] != "rb"] + [("gamma", "rb")])
def test_weight_never_grows_with_distance(sampler, kind):
    matrix = lsh(sampler, kind).matrix(120)
    row = matrix.tril()  # along a row, columns up to the diagonal come nearer
    nearer = row[:, :, 1:] - row[:, :, :-1]
    inside = torch.ones(120, 119, dtype=torch.bool).tril(-1)
    assert bool((nearer[:, inside] >= -1e-12).all())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_blocks_are_contiguous_and_partition_the_tokens(sampler):
    masks = lsh(sampler).masks
    rows = torch.arange(300)[None].expand(3, -1)
    start, end = masks.starts(torch.arange(3), rows), masks.ends(torch.arange(3), rows)
    assert bool(((start <= rows[..., None]) & (rows[..., None] < end)).all())
    extent = rows[..., None] - start
    new_block = extent[:, 1:] == 0
    assert bool((new_block | (extent[:, 1:] == extent[:, :-1] + 1)).all())
    # a block begins exactly where the one before it ends
    assert torch.equal(end[:, :-1][new_block], start[:, 1:][new_block])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_mask_is_symmetric_and_positive_semidefinite(sampler):
    for one in passes(lsh(sampler, masks=3)):
        matrix = one.matrix(60)
        assert torch.equal(matrix, matrix.mT)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-9


@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
def test_draw_is_a_pure_function_of_its_key(sampler):
    first, again = lsh(sampler).masks, lsh(sampler).masks
    assert torch.equal(first.width, again.width) and torch.equal(first.shift, again.shift)
    for other in ({"seed": 8}, {"draw": 1}, {"layer": 1}, {"seed": 7 + 2**32}):
        assert not bool((lsh(sampler, **other).masks.shift == first.shift).any())
    reordered = PositionalLSH.draw(SLOPES.flip(0), 16, seed=7, sampler=sampler).masks  # the head's number is the key
    assert torch.allclose(reordered.width / first.width, (SLOPES / SLOPES.flip(0))[:, None].expand(-1, 16))


@pytest.mark.parametrize("sampler", ["gamma", "fixed"])
def test_the_first_masks_of_a_larger_set_are_the_smaller_set(sampler):
    small, large = lsh(sampler, masks=8).masks, lsh(sampler, masks=16).masks
    assert torch.equal(large.width[:, :8], small.width) and torch.equal(large.shift[:, :8], small.shift)


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("sampler, kind", DRAWS)
def test_prefix_and_decoding_give_the_rows_of_the_whole(sampler, kind, kernel):
    q, k, v = inputs(tokens=301)
    weights = lsh(sampler, kind)
    whole = attend(q, k, v, weights, kernel=kernel)
    prefix = attend(q[:, :, :150], k[:, :, :150], v[:, :, :150], weights, kernel=kernel)
    assert (whole[:, :, :150] - prefix).abs().max() < 1e-12
    for token in (0, 1, 149, 300):
        row = attend(q[:, :, token : token + 1], k[:, :, : token + 1], v[:, :, : token + 1], weights, kernel=kernel)
        assert (row - whole[:, :, token : token + 1]).abs().max() < 1e-12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_merged_passes_equal_the_union_and_the_mean_of_outputs_does_not(sampler):
    q, k, v = inputs()
    weights = lsh(sampler, masks=8)
    parts = [attend(q, k, v, one, kernel="sdpa", return_lse=True) for one in passes(weights)]
    out, lse = merge(parts)
    want, want_lse = attend(q, k, v, weights, kernel="exact", return_lse=True)
    assert (out - want).abs().max() < CLOSE and (lse - want_lse).abs().max() < CLOSE
    if sampler != "fixed":  # its masks are all alike, so there the mean is right
        assert (torch.stack([part for part, _ in parts]).mean(0) - want).abs().max() > 0.1


@pytest.mark.parametrize("sampler, kind", DRAWS)
def test_union_ends_where_reach_says(sampler, kind):
    weights = lsh(sampler, kind)
    matrix = weights.matrix(200)
    rows = torch.arange(200)[None].expand(3, -1)
    first, last = weights.reach(torch.arange(3), rows)
    columns = torch.arange(200)
    inside = (columns >= first[..., None]) & (columns <= last[..., None])
    assert torch.equal(matrix > 0, inside)


@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_one_endless_block_is_plain_softmax_and_no_block_is_the_value_itself(kernel):
    q, k, v = inputs()
    endless = attend(q, k, v, by_hand([1e12], [-3e11]), kernel=kernel)
    assert (endless - F.scaled_dot_product_attention(q, k, v, is_causal=True)).abs().max() < 1e-12
    alone = attend(q, k, v, by_hand([0.5], [0.2]), kernel=kernel)
    assert (alone - v).abs().max() < 1e-12
    constant = attend(q, k, torch.full_like(v, 3.25), lsh(), kernel=kernel)
    assert (constant - 3.25).abs().max() < 1e-12


@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_order_and_grouping_of_masks_do_not_matter(kernel):
    q, k, v = inputs()
    weights = lsh(masks=12)
    want = attend(q, k, v, weights, kernel=kernel)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))

    def chosen(index):
        return PositionalLSH(SLOPES, weights.masks.some(index), "gamma", "count")

    assert (attend(q, k, v, chosen(order), kernel=kernel) - want).abs().max() < CLOSE
    thirds = [attend(q, k, v, chosen(part), kernel=kernel, return_lse=True) for part in order.split(4)]
    assert (merge(thirds)[0] - want).abs().max() < CLOSE


@pytest.mark.parametrize("rule", ["alibi", "window", *DRAWS], ids=str)
@pytest.mark.parametrize("tokens", [45, 150])
def test_gradients_equal_those_of_the_dense_formula(rule, tokens):
    weights = {"alibi": Alibi(SLOPES), "window": Window(SLOPES, 2.0)}.get(rule) or lsh(*rule)
    q, k, v = inputs(tokens)
    grad_out = inputs(tokens, seed=9)[0]

    def gradients(run):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad((run(*leaves) * grad_out).sum(), leaves)

    def dense(q, k, v):
        log_w = weights.matrix(tokens).tril().log()
        return torch.softmax(q @ k.mT * q.shape[3] ** -0.5 + log_w, -1) @ v

    pairs = zip(gradients(dense), gradients(lambda *x: attend(*x, weights, kernel="sdpa")), strict=True)
    assert max((want - got).abs().max() for want, got in pairs) < CLOSE
    if rule == ("gamma", "count"):
        merged = gradients(
            lambda *x: merge([attend(*x, one, kernel="sdpa", return_lse=True) for one in passes(weights)])[0]
        )
        assert max((a - b).abs().max() for a, b in zip(gradients(dense), merged, strict=True)) < CLOSE


def test_bucket_codes_appended_to_q_and_k_reproduce_a_mask():
    """A mask is attention over one-hot bucket codes: two tokens that share a bucket score a large
    constant more."""
    q, k, v = inputs(tokens=60)
    masks = lsh(masks=1).masks
    bucket = masks.bucket(torch.arange(3), torch.arange(60)[None].expand(3, -1))[..., 0].long()
    code = F.one_hot(bucket - bucket.amin(), int(bucket.amax() - bucket.amin()) + 1).double()[None]
    scale = q.shape[3] ** -0.5
    longer_q, longer_k = torch.cat([q, code * 1e3], -1), torch.cat([k, code], -1)
    with_codes = F.scaled_dot_product_attention(longer_q, longer_k, v, is_causal=True, scale=scale)
    assert (with_codes - attend(q, k, v, lsh(masks=1), kernel="exact")).abs().max() < 1e-10


@pytest.mark.parametrize("room", [1 << 24, 1 << 16, 0])
def test_what_a_window_keeps_is_right_for_later_calls(room, monkeypatch):
    """Other lengths, places and directions: under a `room` for all, for some and for none of its
    log-weights."""
    monkeypatch.setattr(sdpa, "MAX_KEPT", room)
    window = Window(SLOPES, 4.0)
    q, k, v = inputs(tokens=700)
    for tokens, first, causal in [(70, 0, True), (700, 0, True), (700, 0, False), (333, 332, True), (700, 600, False)]:
        given = q[:, :, first:tokens], k[:, :, :tokens], v[:, :, :tokens]
        found, want = (attend(*given, window, kernel=kernel, causal=causal) for kernel in ("sdpa", "exact"))
        assert (found - want).abs().max() < CLOSE
        assert sum(x.numel() for x in vars(window)["_log_pieces"].values()) <= room
