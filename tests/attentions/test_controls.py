"""The controls of a comparison: the top-k oracle, the staggered window, and shared masks."""

import pytest
import torch

from harness.common.errors import UserError
from harness.tasks.horizon import measure
from kernels import PositionalLSH, TopK, Window
from kernels.methods.stagger import staggered_cutoffs
from tests.attentions.test_sliding import planned


def test_the_oracle_counts_its_pairs_and_says_what_it_is():
    found = planned("attn=topk", "attn.keys=16", "context=1024").cell
    rows = sum(min(i, 15) for i in range(1024)) / 1024
    assert found.cost() == {"fused": rows}
    assert found.attention.label == "top-k oracle k=16"
    assert "all scores" in found.attention.remarks(None)[0]
    assert [type(w) for w in found.weights(0)] == [TopK, TopK]
    assert found.identity["attn"]["keys"] == 16 and found.draws == 1
    wider = planned("attn=topk", "attn.sinks=4", "attn.near=tile", "context=1024").cell
    assert wider.attention.label == "top-k oracle k=16 +4 sinks +64 near"
    forced = [min(i, 63) + min(4, max(i - 63, 0)) for i in range(1024)]
    assert wider.cost()["fused"] == sum(f + min(15, i - f) for i, f in enumerate(forced)) / 1024


@pytest.mark.parametrize(
    "words, said",
    [
        ("kernel=flex", "use kernel=sdpa"),
        ("kernel=triton", "use kernel=sdpa"),
        ("attn.evict=true", "attn=topk reaches all"),
        ("attn.keys=0", "at least 1"),
        ("attn.keys=null", "needs a value of attn.keys"),
        ("task=theory", "use another attn"),
        ("task=horizon", "use another attn"),
        ("task=throughput", "and saves no time"),
    ],
)
def test_the_oracle_refuses_what_needs_its_keys_beforehand(words, said):
    with pytest.raises(UserError, match=said):
        planned("attn=topk", "context=512", words)


def test_a_staggered_window_costs_as_much_and_is_no_reference():
    plain, found = (planned("attn=window", "context=1024", f"attn.stagger={s}").cell for s in ("false", "true"))
    assert "stagger" not in plain.identity["attn"] and found.identity["attn"]["stagger"] is True
    assert planned("attn=window", "context=1024").cell.cell_id == plain.cell_id
    assert found.cost()["fused"] == pytest.approx(plain.cost()["fused"], rel=1e-4)
    assert found.attention.label.endswith(", staggered") and found.attention.variant == ["staggered"]
    cutoffs = staggered_cutoffs(found.attention.cutoff, 2, 8)
    for layer, weights in enumerate(found.weights(0)):
        assert isinstance(weights, Window) and torch.equal(weights.cutoff, cutoffs[layer])
    masks = planned("context=1024").cell
    costs = {"pairs": found.cost()["fused"], "wanted": masks.cost()["fused"], "context": 1024}
    assert plain.attention.costs_as_much_as(masks.attention, **costs)
    assert not found.attention.costs_as_much_as(masks.attention, **costs)


def test_shared_masks_are_those_of_the_first_layer_or_head():
    none, layers, heads, both = (planned(f"attn.share={s}").cell for s in ("none", "layers", "heads", "all"))
    assert none.cell_id == planned().cell.cell_id and "share" not in none.identity["attn"]
    assert len({c.cell_id for c in (none, layers, heads, both)}) == 4
    slopes = none.model.slopes
    for layer in range(2):
        own = PositionalLSH.draw(slopes, 16, seed=0, draw=3, layer=layer)
        first = PositionalLSH.draw(slopes, 16, seed=0, draw=3, layer=0)
        drawn = {cell.attention.share: cell.weights(3)[layer].masks for cell in (none, layers, heads, both)}
        assert torch.equal(drawn["none"].width, own.masks.width) and torch.equal(drawn["none"].shift, own.masks.shift)
        assert torch.equal(drawn["layers"].width, first.masks.width)
        assert torch.equal(drawn["layers"].shift, first.masks.shift)
        # in units of sigma every head has the masks of head 0
        for share, origin in (("heads", own), ("all", first)):
            for name in ("width", "shift"):
                scaled = getattr(drawn[share], name) * slopes[:, None]
                expected = (getattr(origin.masks, name)[:1] * slopes[0]).expand_as(scaled)
                torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=0)
    assert not torch.equal(none.weights(3)[1].masks.width, none.weights(3)[0].masks.width)
    assert both.attention.label == "PLSH S=16 gamma count, shared by layers and heads"
    assert heads.cost() == none.cost()


def test_masks_on_a_grid_share_its_offset_too():
    grids = planned("attn.share=heads", "attn.align=16", "model=tiny-plain").cell.weights(0)[0].masks.grid
    offsets = grids[grids[:, 0] > 1][:, 1]
    assert len(offsets) > 1 and len(offsets.unique()) == 1


def test_sharing_collapses_without_chance_and_is_not_predicted_as_independence():
    assert planned("attn.sampler=fixed", "attn.share=all").cell.cell_id == planned("attn.sampler=fixed").cell.cell_id
    with pytest.raises(UserError, match=r"attn\.share: 'layer' is not known"):
        planned("attn.share=layer")
    weights = planned("attn.share=all").cell.weights(0)
    assert measure(weights, 512).predicted and not measure(weights, 512, shared=True).predicted
