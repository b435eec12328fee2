"""The faults of stock transformers that docs/models.md names, and attn=stock, which shows them."""

import pytest
import torch

from kernels import alibi_slopes
from tests.measure import upstream
from tests.models.random_models import BUILD, CASES, bloom, falcon, mpt, swapped
from tests.models.test_families import CLOSE, ids


@torch.inference_mode()
def test_bias_max_is_read_from_the_checkpoint():
    """Stock transformers ignores alibi_bias_max (8 and 16 give the same logits); ours must not."""
    results = {}
    for bias_max in (8, 16):
        model = mpt(alibi_bias_max=bias_max)
        results["stock", bias_max] = model(ids()).logits
        attention = swapped(model)
        assert torch.equal(attention.slopes, alibi_slopes(8, bias_max=bias_max))
        results["ours", bias_max] = model(ids()).logits
    assert torch.equal(results["stock", 8], results["stock", 16])
    assert (results["ours", 8] - results["ours", 16]).abs().max() > 0.1
    assert (results["ours", 8] - results["stock", 8]).abs().max() <= CLOSE


def error(found: torch.Tensor, expected: torch.Tensor, first: int, last: int) -> float:
    """Mean |logit error| over the positions first .. last - 1."""
    return float((found.float() - expected.float())[:, first:last].abs().mean())


@torch.inference_mode()
def test_stock_falcon_eager_adds_the_bias_twice():
    stock, ours = falcon(eager=True), falcon()
    expected = stock(ids()).logits
    swapped(ours, slope_factor=2.0)
    assert (ours(ids()).logits - expected).abs().max() <= CLOSE
    assert (falcon()(ids()).logits - expected).abs().max() > 0.2


@torch.inference_mode()
def test_stock_falcon_rounds_the_bias_to_bfloat16_in_a_float32_model():
    for heads, tokens, exact in ((8, 256, True), (8, 512, False), (12, 64, False)):
        stock, ours = falcon(heads=heads), falcon(heads=heads)
        swapped(ours)
        difference = (ours(ids(1, tokens)).logits - stock(ids(1, tokens)).logits).abs().max()
        assert difference <= CLOSE if exact else difference > 1e-3


@torch.inference_mode()
def test_stock_bloom_in_bfloat16_loses_the_bias_with_the_position():
    x = ids(1, 1024)
    model = bloom(heads=16).bfloat16().float()  # weights that bfloat16 holds exactly
    attention = swapped(model)
    expected = model(x).logits
    model.bfloat16()
    ours = model(x).logits
    with attention.use(None):
        stock = model(x).logits
    assert error(stock, expected, 512, 1024) > 5 * error(ours, expected, 512, 1024)
    assert error(stock, expected, 512, 1024) > 2 * error(stock, expected, 0, 128)
    assert error(ours, expected, 512, 1024) < 1.5 * error(ours, expected, 0, 128)


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
@torch.inference_mode()
def test_without_weights_the_stock_code_runs_and_then_ours_again(family, options):
    model = BUILD[family](**options)
    mask = torch.ones(2, 64, dtype=torch.long)
    mask[0, :7] = 0
    stock = model(ids(), attention_mask=mask).logits
    implementation = model.config._attn_implementation
    attention = swapped(model)
    ours = model(ids(), attention_mask=mask).logits
    with attention.use(None):
        assert model.config._attn_implementation == implementation
        assert torch.equal(model(ids(), attention_mask=mask).logits, stock)
    assert torch.equal(model(ids(), attention_mask=mask).logits, ours)


def test_the_measurement_behind_the_page(monkeypatch):
    monkeypatch.setattr(upstream, "EDGES", (0, 64, 512))
    found = upstream.measure("bloom", 16)
    errors = found["mean_abs_error"]
    assert found["std_of_logits"] > 1 and max(errors["stock float32"]) < 1e-4
    assert errors["stock bfloat16"][1] > 3 * errors["ours bfloat16"][1] > 0
