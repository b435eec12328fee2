"""Who wins: planted winners, losers and equals get their words, and a competitor is what costs no more."""

import re

import pytest

from harness.analysis import reader, words
from harness.analysis.costs import Costs
from harness.analysis.verdict import BETTER, EQUAL, SAME, UNDECIDED, WORSE, Finding, corrected, count_tests, find
from harness.pareto.record import points
from tests.report import made

HALF = 800  # samples: as many as decide that equal scores are equal within two points


def findings(store):
    return find(reader.comparisons(reader.records(store)))


def by(found, **wanted):
    """The findings with these values; the side `other` by the beginning of its label."""
    label = wanted.pop("other", "")
    return [f for f in found if f.other.label.startswith(label) and all(getattr(f, k) == v for k, v in wanted.items())]


def scores(right: float):
    """Right answers, spread evenly over draws and depths."""
    return lambda k: float((k // 20) % 10 < 10 * right)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """On `loses` masks lose to the window, beat the sliding window and lose to exact ALiBi; on `ties`
    they equal all."""
    root = tmp_path_factory.mktemp("planted")
    for model, rates in (("loses", (1.0, 0.5, 0.9, 0.1)), ("ties", (0.9, 0.9, 0.9, 0.9))):
        tokens, pairs = made.sliding_of(30.0, 256)
        attentions = (
            (made.ALIBI, {"fused": 127.5}),
            (made.plsh(16, "rb"), {"fused": 30.0, "passes": 200.0}),
            (made.window(1.0), {"fused": 30.0}),
            (made.sliding(tokens), {"fused": pairs}),
        )
        for (attn, cost), rate in zip(attentions, rates, strict=True):
            made.record(made.cell(root, attn, model=model, **cost), scores(rate), samples=HALF)
    return root


def test_planted_decisions(store):
    found = findings(store)
    assert [f.decision for f in by(found, model="loses")] == [WORSE, WORSE, BETTER]
    assert [f.decision for f in by(found, model="ties")] == [EQUAL, EQUAL, EQUAL]
    first = by(found, model="loses", at="exact")[0]
    assert first.loss == pytest.approx(0.5) and first.low < 0.5 < first.high
    assert count_tests(found) == 12


def test_an_oracle_competes_with_nothing_and_is_said(tmp_path):
    oracle = {"name": "topk", "masks": None, "sampler": None, "weights": None, "cutoff": None, "keys": 4}
    for attn, pairs, rate in ((made.ALIBI, 127.5, 0.9), (made.plsh(16, "rb"), 30.0, 0.5), (oracle, 4.0, 0.9)):
        label = "top-k oracle k=4" if attn is oracle else None
        made.record(made.cell(tmp_path, attn, fused=pairs, label=label), scores(rate), samples=HALF)
    found = findings(tmp_path)
    assert [(f.at, f.this.label[:5], f.decision) for f in found] == [
        ("exact", "PLSH ", WORSE),
        ("oracle", "top-k", EQUAL),
    ]
    assert count_tests(found) == 4 and not any(f.suspicious for f in found)
    (paragraph,) = words.paragraphs(found)
    (bound,) = paragraph.bounds
    assert bound.startswith(
        "At 256 tokens, the top-k oracle k=4, which reads all scores and keeps 4.0 pairs a row, loses nothing against "
        "exact ALiBi, equal within 2.0 points"
    )
    assert paragraph.brief.endswith(bound) and paragraph.text.endswith(bound)
    assert "top-k oracle" in words.headlines(found)[1]


def test_two_texts_are_two_paragraphs_and_their_figures_two_columns(tmp_path):
    masks, window = (made.cell(tmp_path, a, fused=30.0) for a in (made.plsh(4, "rb"), made.window(2.0)))
    for text, (ours, theirs) in (("1" * 64, (0.1, 0.5)), ("2" * 64, (0.9, 0.5))):
        for cell, value in ((masks, ours), (window, theirs)):
            made.on_text(cell, lambda k, d, v=value: v + 0.01 * (k % 3) * v, text=text)
    said = {p.subject: p.text for p in words.paragraphs(findings(tmp_path))}
    assert list(said) == ["m, divergence on text 11111111", "m, divergence on text 22222222"]
    assert "Positional LSH wins over the slope window" in said["m, divergence on text 11111111"]
    assert "the slope window wins in the one comparison" in said["m, divergence on text 22222222"]
    point = next(p for p in points(reader.comparisons(reader.records(tmp_path))) if p.label.startswith("PLSH"))
    values = {name[: len("fidelity/kl (1111")]: m.value for name, m in point.metrics.items()}
    assert values == {
        "fidelity/kl (1111": pytest.approx(0.1, rel=0.02),
        "fidelity/kl (2222": pytest.approx(0.9, rel=0.02),
    }


def test_the_summary_counts_all_comparisons_with_a_competitor(store):
    window, sliding = words.summary(findings(store)).split(". Of ")
    assert window == (
        "Of all 2 comparisons with the slope window at no more pairs or time, Positional LSH wins 0, loses 1 "
        "and is equal in 1; 0 are undecided"
    )
    assert "with the sliding window" in sliding and "wins 1, loses 0 and is equal in 1; 0 are" in sliding
    assert words.summary([f for f in findings(store) if f.at == "exact"]) == ""


def test_planted_words(store):
    said = {p.model: p.text for p in words.paragraphs(findings(store))}
    assert said["loses"].startswith(
        "At equal pairs the slope window wins in the one comparison. "
        "At equal pairs Positional LSH wins over the sliding window in the one comparison. "
    )
    assert re.search(
        r"At 256 tokens, PLSH S=16 rb loses 50\.?0? ± [0-9.]+ points against exact ALiBi; the window T=1\.0, which "
        r"visits no more pairs \(30\.0 a row beside 30\.0\), loses 10\.?0? ± [0-9.]+ points: the slope window wins "
        r"\(Holm-adjusted p < 1e-6\)\.",
        said["loses"].replace("gamma ", ""),
    )
    assert said["ties"].startswith("At equal pairs Positional LSH and the slope window are equal within 2.0 points")
    headlines = words.headlines(findings(store))
    assert headlines[0] == (
        "loses, retrieval: PLSH gamma rb loses 50.0 points against exact ALiBi at 256 tokens (S=16)."
    )
    assert "loses, retrieval at equal pairs: the slope window beats PLSH gamma rb by 40.0 points" in headlines[1]
    assert "PLSH gamma rb beats the sliding window by 40.0 points at 256 tokens" in headlines[2]
    assert all("equal within 2.0 points" in line for line in headlines[3:])


def test_nothing_is_claimed_from_few_samples(tmp_path):
    made.record(made.cell(tmp_path, made.ALIBI, fused=127.5), lambda k: 1.0, samples=12)
    made.record(made.cell(tmp_path, made.plsh(4), fused=30.0), lambda k: float(k % 4 > 0), samples=12)
    made.record(made.cell(tmp_path, made.window(1.0), fused=30.0), lambda k: float(k % 3 > 0), samples=12)
    found = findings(tmp_path)
    assert {f.decision for f in found} == {UNDECIDED}
    (paragraph,) = words.paragraphs(found)
    assert "not the one comparison of Positional LSH with the slope window is decided" in paragraph.text
    assert "12 samples under 4 draws do not decide" in paragraph.text


def test_masks_that_beat_exact_are_suspected(tmp_path):
    made.record(made.cell(tmp_path, made.ALIBI, fused=127.5), scores(0.5), samples=HALF)
    made.record(made.cell(tmp_path, made.plsh(4), fused=30.0), scores(0.9), samples=HALF)
    found = findings(tmp_path)
    (warning,) = words.warnings(found)
    assert found[0].suspicious
    assert warning.startswith("Check for a fault: Positional LSH is better than exact ALiBi")
    assert "PLSH S=4 gamma count on m, retrieval, 256 tokens by 40.0 points" in warning


def test_a_competitor_is_the_dearest_setting_that_costs_no_more(tmp_path):
    made.record(made.cell(tmp_path, made.plsh(4), fused=100.0), scores(0.5))
    for cutoff, pairs in ((1.0, 50.0), (2.0, 101.0), (3.0, 103.0)):  # within 2 %, and beyond
        made.record(made.cell(tmp_path, made.window(cutoff), fused=pairs), scores(0.5))
    assert [f.other.label for f in findings(tmp_path)] == ["window T=2.0"]


def test_competitors_have_the_masks_sinks_and_near_field(tmp_path):
    for more in ({}, {"near": 64}, {"sinks": 4}):
        made.record(made.cell(tmp_path, {**made.plsh(4), **more}, fused=100.0), scores(0.5))
        made.record(made.cell(tmp_path, {**made.window(2.0), **more}, fused=90.0, label=str(more)), scores(0.5))
    made.record(made.cell(tmp_path, made.sliding(40), fused=80.0), scores(0.5))
    found = findings(tmp_path)
    assert sorted((f.this.curve.partition("(")[2], f.other.label) for f in found) == [
        ("", "sliding window W=40"),
        ("", "{}"),
        ("4 sinks)", "{'sinks': 4}"),
        ("near 64)", "sliding window W=40"),  # which has a near field already
        ("near 64)", "{'near': 64}"),
    ]


def test_a_method_that_the_registry_lacks_is_a_competitor_too(tmp_path):
    made.record(made.cell(tmp_path, made.plsh(4), fused=100.0), scores(0.5))
    unknown = {**made.ALIBI, "name": "oracle"}
    made.record(made.cell(tmp_path, unknown, fused=16.0, label="oracle k=16"), scores(1.0))
    (found,) = findings(tmp_path)
    assert (found.other.label, found.other.curve) == ("oracle k=16", "oracle")


def text_store(root, *, window: float, sliding: float):
    """Divergences on text: masks 0.4 with a spread of draws, windows as given; all are timed."""
    spread = (-0.03, 0.01, 0.03, -0.01)
    for attn, cost, value, speedup in (
        (made.plsh(16, "rb"), {"fused": 100.0}, 0.4, 2.0),
        (made.window(2.0), {"fused": 99.0}, window, 1.5),  # as many pairs, but slower than the masks
        (made.window(1.0), {"fused": 60.0}, window + 0.2, 2.1),
        (made.sliding(80), {"fused": 70.0}, sliding, 3.0),
    ):
        draws = spread if attn["name"] == "plsh" else (0.0,)
        cell = made.cell(root, attn, **cost)
        made.on_text(cell, lambda k, d, v=value, s=draws: v + s[d] + 0.001 * (k % 3))
        made.timed(cell, 1.0, speedup=speedup)


def test_equal_time_is_another_comparison_than_equal_pairs(tmp_path):
    text_store(tmp_path, window=0.1, sliding=0.004)
    found = findings(tmp_path)
    chosen = {(f.at, f.other.label): (f.decision, round(f.loss, 3)) for f in found}
    assert chosen == {
        ("exact", "exact ALiBi"): (WORSE, 0.401),
        ("pairs", "window T=2.0"): (WORSE, 0.3),
        ("time", "window T=1.0"): (WORSE, 0.1),
        ("pairs", "sliding window W=80"): (WORSE, 0.396),
        ("time", "sliding window W=80"): (WORSE, 0.396),
    }
    assert count_tests(found) == 2 * 4  # one test decides both comparisons with the sliding window
    (paragraph,) = words.paragraphs(found)
    assert paragraph.text.count("At equal time on a CPU the") == 2
    assert (
        "which takes no more time on a CPU (0.33 of exact ALiBi's; Positional LSH 0.50), loses 0.005" in paragraph.text
    )


def test_masks_that_are_no_faster_than_exact_are_named(tmp_path):
    for masks, speedup in ((4, 0.8), (16, 2.0)):
        cell = made.cell(tmp_path, made.plsh(masks), fused=100.0 + masks)
        made.on_text(cell, lambda k, d: 0.4 + 0.01 * (k % 3))
        made.timed(cell, 1.0, speedup=speedup)
    cell = made.cell(tmp_path, made.window(2.0), fused=50.0)
    made.on_text(cell, lambda k, d: 0.1 + 0.01 * (k % 5))
    made.timed(cell, 1.0, speedup=3.0)
    (paragraph,) = words.paragraphs(findings(tmp_path))
    said = "In 1 of 2 settings of Positional LSH exact ALiBi itself takes no more time on a CPU: at 256 tokens."
    assert said in paragraph.text


def test_divergence_below_the_margin_is_called_equal_to_exact(tmp_path):
    cell = made.cell(tmp_path, made.plsh(16, "rb"), fused=100.0)
    made.on_text(cell, lambda k, d: 0.002 + 0.0002 * d + 0.0001 * (k % 3))
    (found,) = findings(tmp_path)
    assert (found.at, found.decision, found.suspicious) == ("exact", EQUAL, False)
    assert "are equal within 0.01 nats" in words.headlines([found])[0]
    assert ", equal within 0.01 nats (Holm-adjusted p" in words.sentence(found)


def test_bits_that_agree_on_every_sample(tmp_path):
    for attn in (made.ALIBI, made.plsh(64)):
        cell = made.cell(tmp_path, attn, fused=127.5)
        made.on_text(cell, lambda k, d: 2.0 + 0.1 * (k % 7), task="perplexity")
    (found,) = findings(tmp_path)
    assert (found.decision, found.loss) == (SAME, 0.0)
    assert "agree on every sample" in words.headlines([found])[0]


def test_times_of_another_machine_and_another_kernel_do_not_count(tmp_path):
    cell = made.cell(tmp_path, made.plsh(16), fused=100.0)
    made.on_text(cell, lambda k, d: 0.1)
    made.timed(cell, 1.0, speedup=2.0, device="cpu")
    made.timed(cell, 1.0, speedup=9.0, device="gpu", start="2025-01-01")
    records = reader.records(tmp_path)
    masks = next(r for r in records if r.task == "fidelity")
    assert Costs.of(records).of_record(masks).time == 0.5
    assert Costs.of(records).device == "cpu"


def test_the_correction_counts_every_test_once(store):
    found = findings(store)
    twice = corrected([f for f in found for _ in range(2)])
    assert [f.adjusted for f in twice[::2]] == [f.adjusted for f in found]
    assert all(f.adjusted >= f.p and f.adjusted_equal >= f.p_equal for f in found)


def test_findings_come_back_from_json(store):
    for f in findings(store):
        assert Finding.read(f.as_dict()) == f
