"""The preallocated KV cache, and the one that drops what no head can reach any more."""

import pytest
import torch
from transformers import DynamicCache

from harness.models.cache import new_cache
from kernels import Alibi, PositionalLSH, Window, alibi_slopes
from tests.models.random_models import BUILD, swapped
from tests.models.test_families import CLOSE, ids, padded

PROMPT, NEW, CHUNK = 110, 40, 16
SLOT = 2 * 8 * 16 * 4  # bytes of a slot: keys and values of 8 heads of 16 numbers in float32


def local(name: str, sinks: int) -> list:
    """Weights of both layers that reach a few dozen tokens; slopes are 32 times ALiBi's, the
    smallest 1/8."""
    slopes = 32.0 * alibi_slopes(8)
    if name == "window":
        return [Window(slopes, 3.0, sinks), Window(slopes, 2.0, sinks)]
    return [PositionalLSH.draw(slopes, 4, seed=3, layer=layer, weights=name, sinks=sinks) for layer in range(2)]


def generate(model, x, mask, cache, new: int = NEW):
    options = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None, "use_cache": True}
    options |= {
        "output_logits": True,
        "return_dict_in_generate": True,
        "prefill_chunk_size": getattr(cache, "chunk", None),
    }
    found = model.generate(x, attention_mask=mask, past_key_values=cache, **options)
    return found.sequences, torch.stack(found.logits)


@pytest.fixture(params=BUILD)
def model(request):
    return BUILD[request.param]()


@torch.inference_mode()
def test_a_token_is_written_and_nothing_is_copied(model):
    attention = swapped(model)
    x, mask = padded(ids(3, 40), [0, 5, 31])
    with attention.use([Alibi(attention.slopes)] * 2):
        cache = new_cache(model, 60)
        tokens, logits = generate(model, x, mask, cache, 20)
        before = [layer.keys.data_ptr() for layer in cache.layers]
        cache.crop(-19)
        assert cache.get_seq_length() == 40
        again, logits_again = generate(model, tokens[:, :41], None if mask is None else one_more(mask), cache, 19)
        expected, expected_logits = generate(model, x, mask, DynamicCache(config=model.config), 20)
    assert torch.equal(tokens, expected)
    assert torch.equal(again, expected)
    assert (logits - expected_logits).abs().max() <= CLOSE
    assert (logits_again - expected_logits[1:]).abs().max() <= CLOSE
    assert [layer.keys.data_ptr() for layer in cache.layers] == before
    assert cache.allocated_bytes == 3 * 60 * 2 * SLOT
    assert cache.used_bytes == 3 * 59 * 2 * SLOT


def one_more(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


@torch.inference_mode()
def test_stock_attention_takes_the_same_cache(model):
    attention = swapped(model)
    with attention.use(None):
        found = generate(model, ids(2, 40), None, new_cache(model, 60), 20)
        expected = generate(model, ids(2, 40), None, DynamicCache(config=model.config), 20)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


EVICTING = [*((build, name, 3) for build in BUILD for name in ("window", "count")), ("mpt", "rb", 0)]


@pytest.mark.parametrize("build, name, sinks", EVICTING)
@torch.inference_mode()
def test_eviction_yields_the_same_tokens_from_less_memory(build, name, sinks):
    """Sequences of a batch begin together, or in the middle, or after others have dropped their
    first tokens."""
    model, weights = BUILD[build](), local(name, sinks)
    attention = swapped(model)
    x, mask = padded(ids(3, PROMPT), [0, 20, 108])
    with attention.use(weights):
        whole = new_cache(model, PROMPT + NEW)
        every = generate(model, x, mask, whole)
        cache = new_cache(model, PROMPT + NEW, evict=True, chunk=CHUNK)
        found = generate(model, x, mask, cache)
    assert torch.equal(found[0], every[0])
    assert (found[1] - every[1]).abs().max() <= CLOSE
    assert cache.get_seq_length() == whole.get_seq_length() == PROMPT + NEW - 1
    assert cache.allocated_bytes == 3 * SLOT * sum(sinks + w.span + CHUNK for w in weights)
    assert cache.used_bytes <= cache.allocated_bytes < 0.7 * whole.used_bytes
    assert all(layer.begin > 40 and layer.keys.shape[2] == layer.size for layer in cache.layers)


@torch.inference_mode()
def test_the_allocation_does_not_grow_with_the_context(model):
    attention = swapped(model)
    sizes = []
    with attention.use(local("count", 3)):
        for tokens in (128, 512):
            cache = new_cache(model, tokens, evict=True, chunk=CHUNK)
            for part in ids(1, tokens).split(CHUNK, 1):
                model(part, past_key_values=cache, use_cache=True)
            sizes.append(cache.allocated_bytes)
    assert sizes[0] == sizes[1]


@torch.inference_mode()
def test_a_cache_that_evicts_goes_back_as_far_as_it_was_made_to(model):
    attention = swapped(model)
    x, weights = ids(2, 160), local("count", 3)
    with attention.use(weights):
        whole = model(x).logits
        cache = new_cache(model, 200, evict=True, rewind=14, chunk=CHUNK)
        for part in x.split(CHUNK, 1):
            model(part, past_key_values=cache, use_cache=True)
        for back in (9, 5):  # from where the cache packed last, at the latest
            cache.crop(-back)
            cache.pack([0, 0], weights)
            cache.pack([0, 0], weights)
            again = model(x[:, 160 - back :], past_key_values=cache, use_cache=True).logits
            assert (again - whole[:, 160 - back :]).abs().max() <= CLOSE
        with pytest.raises(ValueError, match="larger rewind"):
            cache.crop(-60)


@torch.inference_mode()
def test_what_a_cache_cannot_hold_is_said(model):
    attention = swapped(model)
    with pytest.raises(ValueError, match="room for 20 tokens and got 40"):
        model(ids(1, 40), past_key_values=new_cache(model, 20), use_cache=True)
    with attention.use([Window(attention.slopes, 1.0)] * 2), pytest.raises(ValueError, match="prefill in chunks"):
        model(ids(1, 40), past_key_values=new_cache(model, 60, evict=True, chunk=16), use_cache=True)
    with pytest.raises(ValueError, match="weights that forget"):
        model(ids(1, 4), past_key_values=new_cache(model, 60, evict=True), use_cache=True)
