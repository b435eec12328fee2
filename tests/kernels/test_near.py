"""The near field: the nearest keys of a row with the exact weight, under every kernel that takes it."""

import math

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, alibi_slopes, attend, equal_cost_cutoff, expected_pairs
from kernels.methods.cost import log_coverage, sliding_tokens, window_pairs

SLOPES = torch.tensor([2.0, 0.25, 0.03, 0.001], dtype=torch.float64)
WEIGHTS = {
    "window": lambda **o: Window(SLOPES, 2.0, **o),
    "count": lambda **o: PositionalLSH.draw(SLOPES, 5, seed=7, **o),
    "rb": lambda **o: PositionalLSH.draw(SLOPES, 5, seed=7, weights="rb", **o),
    "exact": lambda **o: PositionalLSH.draw(SLOPES, 5, seed=7, weights="exact", **o),
    "count systematic": lambda **o: PositionalLSH.draw(SLOPES, 5, seed=7, sampler="systematic", **o),
    "rb systematic": lambda **o: PositionalLSH.draw(SLOPES, 5, seed=7, sampler="systematic", weights="rb", **o),
    "count fixed": lambda **o: PositionalLSH.draw(SLOPES, 2, seed=7, sampler="fixed", **o),
}
CALLS = {
    "causal": {"queries": 300},
    "both": {"queries": 300, "causal": False},
    "chunk": {"queries": 90, "q_offset": 120},
    "one": {"queries": 1},
    "padded": {"queries": 300, "padding": torch.tensor([0, 130])},
}


def inputs(queries: int, keys: int = 300) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, h, n, 16, generator=generator) for h, n in ((4, queries), (2, keys), (2, keys))]


@pytest.mark.parametrize("near", [1, 16, 64, 100])
@pytest.mark.parametrize("rule", WEIGHTS)
def test_the_kernel_in_chunks_agrees_with_the_oracle(rule: str, near: int):
    for sinks in (0, 5):
        weights = WEIGHTS[rule](near=near, sinks=sinks)
        for name, call in CALLS.items():
            options = {key: value for key, value in call.items() if key != "queries"}
            q, k, v = inputs(call["queries"])
            if "padding" in call:
                k[1, :, :130], v[1, :, :130] = torch.nan, torch.nan
            exact, lse = attend(*(x.double() for x in (q, k, v)), weights, kernel="exact", return_lse=True, **options)
            out, got = attend(q, k, v, weights, kernel="sdpa", return_lse=True, **options)
            assert (out - exact).abs().max() < 2e-5, (name, sinks)
            finite = lse.isfinite()
            assert torch.equal(finite, got.isfinite())
            assert (got - lse)[finite].abs().max() < 2e-5


@pytest.mark.parametrize(
    "weights",
    [
        Window(SLOPES[:2], 2.0, 3, 64),
        PositionalLSH.draw(SLOPES[:2], 5, seed=7, sinks=3, near=64),
        PositionalLSH.draw(SLOPES[:2], 5, seed=7, weights="rb", sinks=3, near=64),
    ],
    ids=["window", "count", "rb"],
)
def test_keys_out_of_reach_may_be_left_out(weights):
    q, k, v = (x[:, :heads] for x, heads in zip(inputs(20), (2, 1, 1), strict=True))
    first, _ = weights.reach(torch.arange(2), torch.full((2, 1), 280))
    gap = int(first.min()) - weights.sinks
    assert 0 < gap <= 280 - 63 - weights.sinks
    kept = [torch.cat([x[:, :, :3], x[:, :, 3 + gap :]], 2) for x in (k, v)]
    whole = attend(q, k, v, weights, kernel="exact")
    for kernel in ("exact", "sdpa"):
        assert (attend(q, *kept, weights, kernel=kernel, gap=gap) - whole).abs().max() < 2e-5


@pytest.mark.parametrize("rule", ["count", "rb"])
def test_gradients_are_those_of_the_oracle(rule: str):
    weights = WEIGHTS[rule](near=16, sinks=2)
    given = inputs(120, 120)
    both = []
    for kernel, dtype in (("sdpa", torch.float32), ("exact", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        out = attend(*leaves, weights, kernel=kernel)
        both.append(torch.autograd.grad(out.square().sum(), leaves))
    assert max((a - b).abs().max() for a, b in zip(*both, strict=True)) < 1e-3


@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
@pytest.mark.parametrize("weights", ["count", "rb"])
def test_it_leaves_the_weights_unbiased(weights: str, sampler: str):
    """Of 1,200 draws the mean weight at each distance is L; within the near field it always is."""
    slopes, near, draws = torch.tensor([0.05, 0.01], dtype=torch.float64), 8, 1200
    row, columns = torch.tensor([160]), torch.arange(161)
    seen = torch.stack(
        [
            PositionalLSH.draw(slopes, 4, seed=1, draw=draw, sampler=sampler, weights=weights, near=near)
            .log_dense(row, columns)[:, 0]
            .exp()
            for draw in range(draws)
        ]
    )
    exact = Alibi(slopes).log_dense(row, columns)[:, 0].exp()
    assert torch.equal(seen[:, :, -near:], exact[:, -near:].expand(draws, -1, -1))
    covered = log_coverage(slopes[:, None] * (row - columns), 4, sampler).exp()
    often = (covered > 0.02) & (covered < 0.98)  # else hardly a draw differs, and the spread says nothing
    often[:, -near:] = False
    assert int(often.sum()) > 100
    error = (seen.mean(0) - exact) / (seen.std(0) / draws**0.5)
    assert error[often].abs().max() < 4.5


@pytest.mark.parametrize("sinks", [0, 40])
@pytest.mark.parametrize("match", ["fused", "passes"])
@pytest.mark.parametrize("sampler", ["gamma", "systematic", "fixed"])
@pytest.mark.parametrize("near", [1, 30])
def test_expected_pairs_equal_the_mean_over_draws(sampler: str, match: str, near: int, sinks: int):
    slopes, tokens, masks = SLOPES[1:], 257, 3
    rows = torch.arange(tokens)[None].expand(3, -1)

    def counted(seed: int) -> float:
        draw = PositionalLSH.draw(slopes, masks, seed=seed, sampler=sampler, sinks=sinks, near=near)
        if match == "fused":
            return float(draw.pairs(tokens).sum())
        start = draw.masks.starts(torch.arange(3), rows).clamp_min(sinks)
        nearest = (rows - near + 1).clamp_min(sinks)
        beyond = (nearest[..., None] - start).clamp_min(0).sum()
        of_sinks = 3 * sum(min(i, sinks) for i in range(tokens))
        return float(beyond + (rows - nearest).clamp_min(0).sum()) + of_sinks

    expected = expected_pairs(slopes, masks, tokens, match=match, sampler=sampler, sinks=sinks, near=near)
    if sampler == "fixed":
        assert counted(0) == expected
        return
    pairs = torch.tensor([counted(seed) for seed in range(250)], dtype=torch.float64)
    assert abs(pairs.mean().item() - expected) <= 4 * pairs.std().item() / len(pairs) ** 0.5


@pytest.mark.parametrize("near", [1, 2, 64, 1000])
@pytest.mark.parametrize("cutoff", [0.0, 0.4, 5.0])
def test_pairs_of_a_window_equal_a_count_of_keys(cutoff: float, near: int):
    tokens, sinks = 200, 7
    window = Window(SLOPES, cutoff, sinks, near)
    keys = [
        sum(1 for i in range(tokens) for j in range(i) if j < sinks or slope * (i - j) <= cutoff or i - j < near)
        for slope in SLOPES.tolist()
    ]
    assert window.pairs(tokens).tolist() == keys
    assert keys == (window.matrix(tokens).tril(-1) > 0).sum((1, 2)).tolist()


@pytest.mark.parametrize("near", [16, 64])
def test_the_window_of_equal_cost_has_the_near_field_of_the_masks(near: int):
    slopes = alibi_slopes(8)
    cutoff = equal_cost_cutoff(slopes, 16, 2000, near=near)
    pairs = expected_pairs(slopes, 16, 2000, near=near)
    assert window_pairs(slopes, cutoff, 2000, near=near) == pytest.approx(pairs, rel=1e-9)
    assert cutoff > 0
    alone = window_pairs(slopes, 0.0, 2000, near=near)
    assert alone == 8 * sum(min(i, near - 1) for i in range(2000))


@pytest.mark.parametrize("sinks", [0, 9])
def test_the_sliding_window_of_equal_cost_by_brute_force(sinks: int):
    tokens = 160
    costs = {
        width: float(Window(SLOPES, 0.0, sinks, width).pairs(tokens).sum()) for width in range(1, tokens - sinks + 1)
    }
    for pairs in [*range(0, 60000, 217), 1e9]:
        width = sliding_tokens(4, pairs, tokens, sinks=sinks)
        assert width == min(costs, key=lambda w: (abs(costs[w] - pairs), w)), pairs


def test_a_near_field_below_zero_is_refused():
    for make in WEIGHTS.values():
        with pytest.raises(ValueError, match="near must be"):
            make(near=-1)
    assert math.isinf(Window(SLOPES, 0.0, near=3).matrix(5).log()[0, 0, 4])
