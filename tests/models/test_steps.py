"""Steps of generation from a KV cache."""

import copy
import gc
import weakref

import pytest
import torch

from harness.models import steps
from harness.models.cache import new_cache
from tests.models.random_models import BUILD, swapped
from tests.models.test_families import ids


@pytest.mark.parametrize("family", BUILD)
@torch.inference_mode()
def test_a_few_tokens_from_a_cache_are_a_step(family: str):
    model = BUILD[family]()
    attention = swapped(model)
    cache = new_cache(model, 60)
    model.generate(ids(2, 30), **cache.argument, use_cache=True, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert set(cache.steps) == {(2, 1)}
    with attention.use(None):  # the checkpoint's own attention
        model(ids(2, 2), **cache.argument, use_cache=True)
    model(ids(2, 17), **cache.argument, use_cache=True)
    model(ids(2, 1), **cache.argument, use_cache=True, output_hidden_states=True)
    assert set(cache.steps) == {(2, 1)}
    model(ids(2, 2), **cache.argument, use_cache=True)
    assert set(cache.steps) == {(2, 1), (2, 2)}
    assert cache.get_seq_length() == 34 + 2 + 17 + 1 + 2


@torch.inference_mode()
def test_a_cache_is_freed_with_its_steps():
    """At once: two caches of a long context may not fit."""
    model = BUILD["mpt"]()
    swapped(model)
    cache = new_cache(model, 30)
    for at in (20, 1, 1):
        model(ids(2, at), **cache.argument, use_cache=True)
    assert cache.steps
    assert not copy.deepcopy(cache).steps
    held = weakref.ref(cache.layers[0].keys)
    gc.disable()
    del cache
    gc.enable()
    assert held() is None


@torch.inference_mode()
def test_where_nothing_can_be_captured_steps_are_launched_one_by_one(monkeypatch):
    model, x = BUILD["mpt"](), ids(2, 30)
    swapped(model)
    whole = model(x).logits
    monkeypatch.setattr("harness.models.swap.Step", lambda *given, **_: steps.Step(*given, graphs=True))
    cache = new_cache(model, 30)
    model(x[:, :24], **cache.argument, use_cache=True)
    found = []
    for at in range(24, 30):
        call = lambda: model(x[:, at : at + 1], **cache.argument, use_cache=True).logits  # noqa: B023, E731
        if at == 25:
            with pytest.warns(UserWarning, match="No CUDA graph of a step"):
                found.append(call())
        else:
            found.append(call())
    assert (torch.cat(found, 1) - whole[:, 24:]).abs().max() < 1e-4
    assert not cache.steps[2, 1].graphs
