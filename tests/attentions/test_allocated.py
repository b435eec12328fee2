"""Windows allocated by a file: what it may hold, and the attention that it describes."""

import json
from types import SimpleNamespace

import pytest
import torch

from harness.attentions.allocation import read_allocation
from harness.attentions.registry import attention_of
from harness.common.errors import UserError
from harness.experiment.replace import attention
from kernels import Window, alibi_slopes
from tests.attentions.test_sliding import planned, seen_pairs
from tests.models.random_models import mpt

TOKENS = [[1, 2, 5, 9, 17, 64, 300, 512], [512, 300, 64, 17, 9, 5, 2, 1]]


@pytest.fixture(scope="module")
def tiny():
    return planned().cell.model


def written(folder, about, **changes):
    file = folder / "allocation.json"
    file.write_text(json.dumps({"schema": 1, "model": about.identity, "tokens": TOKENS, **changes}))
    return file


def cell(file, *words):
    return planned("attn=allocated", f"attn.allocation={file}", *words).cell


def test_each_head_sees_what_the_file_says(tiny, tmp_path):
    found = cell(written(tmp_path, tiny), "attn.sinks=3", "context=200")
    for layer, weights in enumerate(found.weights(0)):
        assert isinstance(weights, Window) and weights.sinks == 3
        assert weights.tokens.tolist() == [n - 1 for n in TOKENS[layer]]
    counted = sum(seen_pairs([1.0], 200, 3, 0.0, n) for layer in TOKENS for n in layer)
    assert found.cost()["fused"] == counted / (16 * 200)
    near = cell(written(tmp_path, tiny), "attn.near=16", "context=200")
    assert near.weights(0)[0].tokens.tolist() == [max(n, 16) - 1 for n in TOKENS[0]]
    counted = sum(seen_pairs([1.0], 200, 0, 0.0, max(n, 16)) for layer in TOKENS for n in layer)
    assert near.cost()["fused"] == counted / (16 * 200)


def test_the_content_of_the_file_is_in_the_identity_and_its_place_is_not(tiny, tmp_path):
    first = cell(written(tmp_path, tiny))
    assert "tokens" not in first.identity["attn"] and len(first.identity["attn"]["allocation"]) == 16
    moved = tmp_path / "elsewhere.json"
    moved.write_text(json.dumps(json.loads((tmp_path / "allocation.json").read_text()), indent=3))
    assert cell(moved).cell_id == first.cell_id
    assert cell(written(tmp_path, tiny, calibration="another")).cell_id != first.cell_id
    other = [TOKENS[0], [511, *TOKENS[1][1:]]]
    assert cell(written(tmp_path, tiny, tokens=other)).cell_id != first.cell_id
    shown = attention_of(first.identity["attn"])
    assert shown.label == first.attention.label and shown.pairs(tiny, 512) == {}
    assert first.attention.facts(tiny) == {"tokens_per_head": TOKENS}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"schema": 2}, "no allocation of version 1"),
        ({"tokens": None}, "no allocation of version 1"),
        ({"model": {}}, "for another model than tiny"),
        ({"tokens": TOKENS[:1]}, "2 lists, one a layer, of the tokens of 8 heads"),
        ({"tokens": [TOKENS[0], TOKENS[1][:7]]}, "2 lists, one a layer, of the tokens of 8 heads"),
        ({"tokens": [TOKENS[0], [0] * 8]}, "at least 1"),
        ({"tokens": [TOKENS[0], [1.5] * 8]}, "whole numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        cell(written(tmp_path, tiny, **changes))


def test_files_that_cannot_be_read_are_refused(tiny, tmp_path):
    (tmp_path / "odd.json").write_text("{")
    for name in ("odd.json", "nowhere.json", "."):
        with pytest.raises(UserError, match="cannot be read as JSON"):
            read_allocation(str(tmp_path / name), tiny)
    with pytest.raises(UserError, match="needs attn.allocation=FILE"):
        planned("attn=allocated")
    with pytest.raises(UserError, match="for another model than tiny-plain"):
        cell(written(tmp_path, tiny), "model=tiny-plain")


def test_it_may_evict(tiny, tmp_path):
    found = cell(written(tmp_path, tiny), "attn.evict=true")
    assert found.attention.evict and found.weights(0)[0].span == 511
    rows = torch.full((8, 1), 700)
    assert found.weights(0)[1].reach(torch.arange(8), rows)[0][:, 0].tolist() == [701 - n for n in TOKENS[1]]


def test_a_model_in_memory_is_known_by_its_slopes(tiny, tmp_path):
    file = written(tmp_path, SimpleNamespace(identity={"slopes": alibi_slopes(8).tolist()}))
    with attention(mpt(heads=8, layers=2), "allocated", allocation=str(file)) as replaced:
        assert "windows allocated" in replaced.label
    with pytest.raises(UserError, match="for another model"):
        attention(mpt(heads=4, layers=2), "allocated", allocation=str(file))
