"""The sliding window and the references of equal cost, against counts over all pairs and stock code."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers.models.mpt.modeling_mpt import MptAttention

from harness.attentions.plsh import Plsh
from harness.attentions.registry import references
from harness.attentions.sliding import Sliding
from harness.attentions.window import Window as SlopeWindow
from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment.config import register_schema
from harness.experiment.plan import plan
from harness.experiment.replace import attention
from harness.models.cache import new_cache
from kernels import Window, alibi_slopes, expected_pairs
from tests.models.random_models import mpt
from tests.models.test_cache import SLOT, generate
from tests.models.test_families import CLOSE, ids


def planned(*overrides):
    register_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return plan(compose("config", overrides=list(overrides)))


@pytest.fixture(scope="module")
def tiny():
    return planned().cell.model


def seen_pairs(slopes, tokens: int, sinks: int, reach: float, near: int) -> int:
    """How many (row, earlier key) pairs of all heads a window of `reach` sigmas sees."""
    return sum(
        sum(j < sinks or i - j < near or slope * (i - j) <= reach for j in range(i))
        for slope in slopes
        for i in range(tokens)
    )


@pytest.mark.parametrize("near, sinks", [(0, 0), (16, 0), (16, 3), (40, 3)])
def test_references_cost_what_the_masks_cost_by_a_count_of_all_pairs(tiny, near, sinks):
    tokens, slopes = 150, tiny.slopes.tolist()
    masks = Plsh(4, "gamma", "rb", sinks=sinks, near=near)
    found = references(masks, tiny, tokens)
    wanted = expected_pairs(tiny.slopes, 4, tokens, sinks=sinks, near=near)
    rows = tokens * len(slopes)
    window, sliding = found["window"], found["sliding"]
    assert isinstance(window, SlopeWindow)
    assert (window.near, window.sinks, sliding.sinks) == (near, sinks, sinks)
    # the closed form has no rounded edges: sum of min(i, farthest) over rows and heads
    length = tokens - sinks
    farthest = [max(window.cutoff / slope, near - 1) for slope in slopes]
    of_sinks = len(slopes) * sum(min(i, sinks) for i in range(tokens))
    assert sum(min(i, f) for f in farthest for i in range(length)) + of_sinks == pytest.approx(wanted, rel=2e-5)
    seen = seen_pairs(slopes, tokens, sinks, window.cutoff, near)
    assert abs(seen - wanted) / rows < 0.5  # a head's edge is rounded to a token, half of one in the mean
    assert isinstance(sliding, Sliding)
    costs = {width: seen_pairs(slopes, tokens, sinks, 0.0, width) for width in range(1, length + 1)}
    assert sliding.tokens == min(costs, key=lambda width: abs(costs[width] - wanted))
    assert sliding.pairs(tiny, tokens)["fused"] == costs[sliding.tokens]
    assert sliding.tokens > near


@pytest.mark.parametrize("sinks", [0, 3])
@torch.inference_mode()
def test_it_is_stock_mpt_with_a_band(sinks):
    model, tokens = mpt(), 9
    x = ids(2, 40)
    distance = torch.arange(40)[:, None] - torch.arange(40)
    beyond = (distance >= tokens) & (torch.arange(40) >= sinks)

    def narrowed(module, given, options):
        return given, {**options, "attention_mask": options["attention_mask"] | beyond}

    hooks = [
        module.register_forward_pre_hook(narrowed, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, MptAttention)
    ]
    expected = model(x).logits
    for hook in hooks:
        hook.remove()
    whole = model(x).logits
    for kernel in ("sdpa", "exact"):
        with attention(model, "sliding", tokens=tokens, sinks=sinks, kernel=kernel):
            found = model(x).logits
        assert (found - expected).abs().max() <= CLOSE
    assert (whole - expected).abs().max() > 0.05


@pytest.mark.parametrize("sinks", [0, 3])
@torch.inference_mode()
def test_generation_keeps_its_tokens_and_the_sinks_alone(sinks):
    model, tokens, prompt, new, chunk = mpt(), 9, 70, 30, 8
    x = ids(2, prompt)
    with attention(model, "sliding", tokens=tokens, sinks=sinks):
        expected, logits = generate(model, x, None, new_cache(model, prompt + new), new)
    cache = new_cache(model, prompt + new, evict=True, chunk=chunk)
    with attention(model, "sliding", tokens=tokens, sinks=sinks, evict=True):
        found, logits_found = generate(model, x, None, cache, new)
        assert torch.equal(found, expected)
        assert (logits_found - logits).abs().max() <= CLOSE
        weights = Window(alibi_slopes(8), 0.0, sinks, tokens)
        for layer in cache.layers:
            assert layer.size == sinks + tokens - 1 + chunk  # a row's own key is in the chunk
            layer.pack([0, 0], weights)
            assert layer.filled == sinks + tokens - 1  # what the next row sees beside itself
    assert cache.allocated_bytes == 2 * SLOT * 2 * layer.size


def test_its_number_of_tokens_is_in_the_identity_and_the_label():
    found = planned("attn=sliding", "attn.tokens=64", "attn.sinks=4").cell
    assert found.identity["attn"] == {
        **{"name": "sliding", "masks": None, "sampler": None, "weights": None, "cutoff": None},
        **{"tokens": 64, "sinks": 4},
    }
    assert found.attention.label == "sliding window W=64 +4 sinks"
    assert found.draws == 1
    for other in ("attn.near=64", "masks=3", "seed=2", "attn.match=passes"):
        assert planned("attn=sliding", "attn.tokens=64", "attn.sinks=4", other).cell.cell_id == found.cell_id
    assert planned("attn=sliding", "attn.tokens=65", "attn.sinks=4").cell.cell_id != found.cell_id


def test_without_tokens_it_costs_what_the_masks_cost():
    for near in (0, 64):
        shared = ("context=1024", "masks=16", f"attn.near={near}", "attn.sinks=2")
        alone, beside = planned("attn=sliding", *shared).cell, planned(*shared).references["sliding"]
        assert alone.cell_id == beside.cell_id
        assert alone.cost()["fused"] == pytest.approx(planned(*shared).cell.cost()["fused"], abs=0.5)
    wide = planned("attn=sliding", "attn.match=passes", "context=1024").cell.attention
    assert wide.tokens > alone.attention.tokens


def test_a_tile_is_64_tokens_before_anything_is_identified():
    for attn in ("attn=plsh", "attn=window", "attn=sliding"):
        by_word, by_number = planned(attn, "attn.near=tile"), planned(attn, "attn.near=64")
        assert by_word.cell.identity == by_number.cell.identity
        assert {k: c.cell_id for k, c in by_word.references.items()} == {
            k: c.cell_id for k, c in by_number.references.items()
        }
    assert planned("attn=plsh", "attn.near=tile").cell.identity["attn"]["near"] == 64


@pytest.mark.parametrize("given", ["-1", "tiles", "'64'"])
def test_other_near_fields_are_refused(given):
    with pytest.raises(UserError, match=r"attn\.near must be at least 0 tokens, or tile for 64"):
        planned("attn=plsh", f"attn.near={given}")


def test_references_are_chosen_by_name():
    by_default = planned("context=1024")
    assert by_default.asked_references == ("exact", "window", "sliding")
    assert [c.attention.name for c in by_default.cells] == ["plsh", "alibi", "window", "sliding"]
    assert set(by_default.references) == {"exact", "window", "sliding", "passes"}  # shown if the store has it
    chosen = planned("context=1024", "references=[passes,exact]")
    assert chosen.asked_references == ("exact", "passes")
    assert [c.attention.name for c in chosen.cells] == ["plsh", "alibi", "window"]
    assert chosen.cells[2].attention.cutoff > by_default.references["window"].attention.cutoff
    assert planned("references=sliding").asked_references == ("sliding",)
    assert planned("references=[]").references == planned("references=none").references == {}
    remote = planned("model=random", "task=throughput", "references=read")
    assert remote.cells == [remote.cell]


def test_one_cell_is_one_reference():
    alone = planned("masks=1", "context=160")  # one mask: its union is its pass
    assert set(alone.references) == {"exact", "window", "sliding"}
    assert set(planned("masks=1", "context=160", "references=[passes]").references) == {"exact", "passes", "sliding"}
    assert "sliding" not in planned("attn=sliding", "context=160").references


@pytest.mark.parametrize(
    "given, said", [("[exact,windw]", "'windw' is not known"), ("true", "references=true"), ("3", "=3")]
)
def test_unknown_references_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        planned(f"references={given}")
