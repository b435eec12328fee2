"""task=perplexity and task=fidelity against stock transformers and closed formulas."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from harness.tasks.text import fidelity, logits, perplexity
from harness.tasks.text.windows import Window
from kernels import Alibi
from kernels import Window as WindowWeights
from tests.models import random_models
from tests.models.random_models import CASES, swapped

CONTEXT, STRIDE, VOCABULARY = 48, 20, 97
BREAKS = torch.arange(VOCABULARY) % 10 == 3


def batch(count: int = 3) -> list[Window]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (count, CONTEXT + 1), generator=generator)
    return [Window(n, row, torch.arange(STRIDE) % 4, f"hash {n}") for n, row in enumerate(ids)]


def loaded(family: str, options: dict):
    """A model under our attention, and the stock model of the same weights."""
    ours, stock = (getattr(random_models, family)(**options) for _ in range(2))
    return SimpleNamespace(model=ours, attention=swapped(ours, kernel="exact")), stock


@pytest.mark.parametrize("family, options", CASES)
def test_windows_are_scored_as_by_stock_transformers(family, options, monkeypatch):
    monkeypatch.setattr(logits, "MAX_LOGITS", 7 * VOCABULARY)  # pieces of 7 positions
    ours, stock = loaded(family, options)
    rows = perplexity.score_windows(ours, batch(), BREAKS)
    for row, window in zip(rows, batch(), strict=True):
        with torch.inference_mode():
            scores = stock(window.ids[None, :-1]).logits[0, -STRIDE:].double()
        true = window.ids[-STRIDE:]
        nats = cross_entropy(scores, true, reduction="none")
        ranks = [1 + int((s > s[t]).sum()) for s, t in zip(scores, true, strict=True)]
        assert row.nll == pytest.approx(float(nats.sum()), rel=1e-5)
        assert row.score == pytest.approx(float(nats.sum()) / math.log(2) / int(window.sizes.sum()), rel=1e-5)
        assert row.top == {str(k): sum(r <= k for r in ranks) for k in (1, 10, 100)}
        assert row.reciprocal_ranks == pytest.approx(sum(1 / r for r in ranks), rel=1e-5)
        entropies = torch.distributions.Categorical(logits=scores).entropy()
        assert row.entropies == pytest.approx(float(entropies.sum()), rel=1e-5)
        assert [n for _, n in row.quarters] == [5, 5, 5, 5]
        assert [x for x, _ in row.quarters] == pytest.approx(nats.view(4, 5).sum(1).tolist(), rel=1e-5)
        parts = [slice(5 * q, 5 * q + 5) for q in range(4)]
        assert row.by_quarter["top_10"] == [sum(r <= 10 for r in ranks[part]) for part in parts]
        assert row.by_quarter["reciprocal_rank"] == pytest.approx([sum(1 / r for r in ranks[part]) for part in parts])
        assert row.by_quarter["entropy"] == pytest.approx(entropies.view(4, 5).sum(1).tolist(), rel=1e-5)
        assert row.by_quarter["scored_bytes"] == window.sizes.view(4, 5).sum(1).tolist()


def test_the_nats_of_line_breaks_are_those_of_the_decision_to_break():
    ours, stock = loaded("mpt", {})
    row, window = perplexity.score_windows(ours, batch(1), BREAKS)[0], batch(1)[0]
    with torch.inference_mode():
        p = stock(window.ids[None, :-1]).logits[0, -STRIDE:].double().softmax(-1)
    nats = dict.fromkeys(perplexity.CLASSES, 0.0)
    count = dict.fromkeys(perplexity.CLASSES, 0)
    for place, (row_p, true) in enumerate(zip(p, window.ids[-STRIDE:].tolist(), strict=True)):
        p_break = float(row_p[BREAKS].sum())
        if BREAKS[true]:
            name = "line_breaks"
            nats[name] -= math.log(float(row_p[true]))
        else:
            seen = window.ids[: CONTEXT + 1 - STRIDE + place].tolist()
            name = "repeats" if true in seen else "first_occurrences"
            nats["line_breaks"] -= math.log(1 - p_break)
            nats[name] -= math.log(float(row_p[true]) / (1 - p_break))
        count[name] += 1
    assert min(count.values()) > 0
    assert {name: n for name, (_, n) in row.classes.items()} == count
    assert {name: x for name, (x, _) in row.classes.items()} == pytest.approx(nats, rel=1e-4)


def test_metrics_are_ratios_of_sums():
    rows = [
        perplexity.PerplexityRow(
            key=k, score=0, nll=nll, scored_tokens=tokens, scored_bytes=size, top={"1": 1, "10": 2, "100": 3},
            reciprocal_ranks=1.5, entropies=4.0, quarters=[(nll / 4, tokens // 4)] * 4,
            classes={"line_breaks": (0.5, 1), "first_occurrences": (nll - 1.5, 2), "repeats": (1.0, 1)},
            by_quarter={name: [x, 0.0, 1.0, 2.0] for x, name in enumerate(perplexity.UNITS, 1)}
            | {"scored_bytes": [size / 2, size / 2, 0, 0]},
        )
        for k, (nll, tokens, size) in enumerate([(10.0, 4, 12), (30.0, 8, 20), (20.0, 4, 10)])
    ]  # fmt: skip
    metrics = perplexity.PERPLEXITY.metrics(perplexity.Options(), rows, clustered=False)
    assert metrics["bits_per_byte"].value == pytest.approx(60 / 42 / math.log(2))
    assert metrics["perplexity"].value == pytest.approx(math.exp(60 / 16))
    assert metrics["top_10"].value == pytest.approx(6 / 16)
    assert metrics["reciprocal_rank"].value == pytest.approx(4.5 / 16)
    assert metrics["nats_per_token_quarter_1"].value == pytest.approx(15 / 4)
    assert metrics["bits_per_byte_quarter_2"].value == pytest.approx(60 / 4 / 21 / math.log(2))
    assert "bits_per_byte_quarter_3" not in metrics  # no character ends in it
    assert metrics["top_10_quarter_1"].value == pytest.approx(3 * 2 / 4)
    assert metrics["entropy_quarter_4"].value == pytest.approx(3 * 2 / 4)
    parts = [metrics[f"bits_per_byte_{name}"].value for name in perplexity.CLASSES]
    assert sum(parts) == pytest.approx(metrics["bits_per_byte"].value)


@pytest.mark.parametrize("family, options", [CASES[0], CASES[3], CASES[5]])
def test_fidelity_is_the_divergence_between_two_runs(family, options):
    ours, stock = loaded(family, options)
    slopes = ours.attention.slopes
    exact, cut = [Alibi(slopes)] * 2, [WindowWeights(slopes, 0.5)] * 2
    rows = fidelity.compare_windows(ours, batch(), exact, cut, "none")
    for row, window in zip(rows, batch(), strict=True):
        with torch.inference_mode():
            true = stock(window.ids[None, :-1], output_hidden_states=True)
            with ours.attention.use(cut):
                changed = ours.model(window.ids[None, :-1], output_hidden_states=True)
        log_p, log_q = (x.logits[0, -STRIDE:].double().log_softmax(-1) for x in (true, changed))
        divergence = kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
        assert row.score == pytest.approx(float(divergence.mean()), rel=1e-3, abs=1e-7)
        assert row.quarters == pytest.approx(divergence.view(4, 5).mean(1).tolist(), rel=1e-3, abs=1e-7)
        assert row.agreements == int((log_p.argmax(1) == log_q.argmax(1)).sum())
        a, b = (x.logits[0, -STRIDE:].double() for x in (true, changed))
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        assert row.logits_change == pytest.approx(float((b - a).square().sum()), rel=1e-3)
        assert row.logits_total == pytest.approx(float(a.square().sum()), rel=1e-4)
        for layer in range(2):
            h, g = (x.hidden_states[1 + layer][0, -STRIDE:].double() for x in (true, changed))
            assert row.layers_change[layer] == pytest.approx(float((g - h).square().sum()), rel=1e-3)
            assert row.layers_total[layer] == pytest.approx(float(h.square().sum()), rel=1e-4)


def test_attribution_approximates_one_layer_or_head_at_a_time():
    """Weights that differ from exact ALiBi in one head alone: only this head's figure is not 0, and
    it is the whole divergence."""
    ours, _ = loaded("mpt", {})
    slopes = ours.attention.slopes
    steeper = slopes.clone()
    steeper[2] *= 8
    exact, changed = [Alibi(slopes)] * 2, [Alibi(slopes), Alibi(steeper)]
    whole = fidelity.compare_windows(ours, batch(1), exact, changed, "none")[0].score
    heads = fidelity.compare_windows(ours, batch(1), exact, changed, "heads")[0].attribution
    layers = fidelity.compare_windows(ours, batch(1), exact, changed, "layers")[0].attribution
    assert set(heads) == {f"{layer}_{head}" for layer in (1, 2) for head in range(1, 9)}
    assert whole > 1e-5
    assert heads.pop("2_3") == pytest.approx(whole, rel=1e-4)
    assert list(heads.values()) == pytest.approx([0.0] * 15, abs=1e-9)
    assert layers == pytest.approx({"1": 0.0, "2": whole}, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("family, options", [CASES[0], CASES[3], CASES[6]])
def test_sink_mass_is_the_attention_of_the_first_tokens(family, options):
    """Stock transformers gives the probabilities; stock Falcon adds its bias twice where it does, so
    that ours is replaced with twice the slopes."""
    ours, stock = (getattr(random_models, family)(**options) for _ in range(2))
    attention = swapped(ours, kernel="exact", slope_factor=2.0 if family == "falcon" else 1.0)
    exact = [Alibi(attention.slopes)] * 2
    model = SimpleNamespace(model=ours, attention=attention)
    rows = fidelity.compare_windows(model, batch(), exact, exact, "none", sink_tokens=3)
    for row, window in zip(rows, batch(), strict=True):
        with torch.inference_mode():
            first = stock(window.ids[None, :-1], output_attentions=True).attentions[0]
            expected = first[0, :, -STRIDE:, :3].sum(2).mean(1)
        assert len(row.sink_mass) == 2
        assert row.sink_mass[0] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


def test_crossed_draws_are_those_of_the_divergence_by_itself():
    ours, _ = loaded("mpt", {})
    slopes = ours.attention.slopes
    exact, layers = [Alibi(slopes)] * 2, [[WindowWeights(slopes, cutoff)] * 2 for cutoff in (0.3, 0.6, 2.0)]
    rows = fidelity.compare_windows(ours, batch(), exact, layers[1], "none", crossed=layers)
    for draw, weights in enumerate(layers):
        alone = fidelity.compare_windows(ours, batch(), exact, weights, "none")
        assert [r.by_draw[draw] for r in rows] == pytest.approx([r.score for r in alone])
    assert all(r.by_draw[1] == r.score for r in rows)
