"""Replaced attention against stock transformers, in float32."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache

from harness.models.cache import new_cache
from harness.models.families import FAMILIES
from harness.models.swap import SwappedAttention
from kernels import PositionalLSH, Window
from tests.models.random_models import BUILD, CASES, falcon, mpt, swapped

CLOSE = 2e-5
TOKENS = 64
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles FlexAttention with g++")


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def pair(request):
    """(stock model, the same model with replaced attention)."""
    family, options = request.param
    stock = BUILD[family](**options)
    ours = copy.deepcopy(stock)
    swapped(ours)
    return stock, ours


@pytest.fixture(params=BUILD)
def build(request):
    """Makes a random model of one family."""
    return BUILD[request.param]


def ids(batch: int = 2, tokens: int = TOKENS, *, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 97, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def padded(x: torch.Tensor, pads: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.stack([torch.arange(x.shape[1]) >= p for p in pads])
    return torch.where(mask, x, 0), mask.long()


@torch.inference_mode()
def test_prefill_equals_stock(pair):
    stock, ours = pair
    expected = stock(ids()).logits
    assert expected.std() > 0.5  # logits that would show a difference
    assert (ours(ids()).logits - expected).abs().max() <= CLOSE


@torch.inference_mode()
def test_left_padded_batch_equals_stock(pair):
    stock, ours = pair
    x, mask = padded(ids(3), [0, 5, 31])
    difference = (ours(x, attention_mask=mask).logits - stock(x, attention_mask=mask).logits).abs()
    assert difference[mask.bool()].max() <= CLOSE


@torch.inference_mode()
def test_cached_greedy_generation_equals_stock(pair):
    stock, ours = pair
    x, mask = padded(ids(2, 40), [0, 7])
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    expected = stock.generate(x, attention_mask=mask, **options)
    found = ours.generate(x, attention_mask=mask, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert (torch.stack(found.logits) - torch.stack(expected.logits)).abs().max() <= CLOSE


@torch.inference_mode()
def test_chunked_prefill_equals_whole(build):
    model = build()
    swapped(model)
    whole = model(ids()).logits
    cache = new_cache(model, TOKENS)
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids().split(23, dim=1)]
    assert (torch.cat(parts, 1) - whole).abs().max() <= CLOSE


@pytest.mark.parametrize("kernel", ["sdpa", pytest.param("flex", marks=needs_compiler)])
@torch.inference_mode()
def test_kernels_agree_in_a_model(build, kernel):
    logits = []
    for each in ("exact", kernel):
        model = build()
        swapped(model, kernel=each)
        logits.append(model(ids()).logits)
    assert (logits[0] - logits[1]).abs().max() <= CLOSE


@pytest.mark.parametrize(("build", "bound"), [(mpt, "max_seq_len"), (falcon, "max_position_embeddings")])
@torch.inference_mode()
def test_more_tokens_than_the_configured_maximum(build, bound):
    """The reference is a stock model with the bound raised; stock MPT cannot go past its own."""
    short, long = build(**{bound: 48}), build(**{bound: 128})
    if build is mpt:
        with pytest.raises(RuntimeError):
            short(ids())
    swapped(short)
    assert (short(ids()).logits - long(ids()).logits).abs().max() <= CLOSE


@pytest.mark.parametrize("name", ["count", "rb", "exact", "window"])
@torch.inference_mode()
def test_decode_equals_prefill(build, name):
    model = build()
    attention = swapped(model)
    weights = layer_weights(attention, name)
    with attention.use(weights):
        whole = model(ids()).logits
        cache = new_cache(model, TOKENS)
        steps = [model(ids()[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(TOKENS)]
    assert (torch.cat(steps, 1) - whole).abs().max() <= CLOSE
    assert (whole - model(ids()).logits).abs().max() > 0.05  # the weights are in force inside `use` and only there


@pytest.mark.parametrize("name", ["count", "rb", "window"])
@torch.inference_mode()
def test_padded_row_equals_the_row_alone(build, name):
    """Masks live in token coordinates: batch mates must not move them."""
    model = build()
    attention = swapped(model)
    x, mask = padded(ids(3), [0, 5, 31])
    with attention.use(layer_weights(attention, name)):
        together = model(x, attention_mask=mask).logits
        for row, pad in enumerate((0, 5, 31)):
            alone = model(x[row : row + 1, pad:]).logits
            assert (together[row, pad:] - alone[0]).abs().max() <= CLOSE


@torch.inference_mode()
def test_layers_have_independent_masks(build):
    model = build()
    attention = swapped(model)
    independent = layer_weights(attention, "count")
    with attention.use(independent):
        one = model(ids()).logits
    with attention.use([independent[0]] * 2):
        shared = model(ids()).logits
    assert (one - shared).abs().max() > 1e-3


def test_a_mask_of_the_new_tokens_alone_is_refused(build):
    """Beside a cache it would make tokens of earlier padding."""
    model = build()
    swapped(model)
    cache = DynamicCache(config=model.config)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :5] = 0
    with torch.inference_mode():
        model(ids(), attention_mask=mask, past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="covers 3 tokens"):
            model(ids()[:, :3], attention_mask=mask[:, -3:], past_key_values=cache, use_cache=True)


@torch.inference_mode()
def test_hooked_modules_keep_their_hooks(build):
    """accelerate's device_map wraps forward; what it wraps is replaced, not the wrapper."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    stock = build()
    expected = stock(ids()).logits
    calls = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return super().pre_forward(module, *args, **kwargs)

    for module in stock.modules():
        if FAMILIES[stock.config.model_type].is_attention(module):
            add_hook_to_module(module, Counting(execution_device="cpu"))
    swapped(stock)
    assert (stock(ids()).logits - expected).abs().max() <= CLOSE
    assert len(calls) == 2  # once for each layer


@torch.inference_mode()
def test_a_model_spread_by_accelerate_generates_the_same(build, tmp_path):
    """Layers that lie elsewhere (here on the disk, for want of a second device) are run by hooks
    around our forward."""
    from accelerate import dispatch_model

    model = build()
    attention = swapped(model)
    weights = [Window(0.5 * torch.ones(8), 8.0, 2)] * 2
    x, mask = padded(ids(2, 40), [0, 13])
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "use_cache": True}

    def tokens(model, attention) -> torch.Tensor:
        cache = new_cache(model, 52, evict=True, chunk=8)
        with attention.use(weights):
            return model.generate(
                x, attention_mask=mask, past_key_values=cache, prefill_chunk_size=cache.chunk, **options
            )

    expected, spread = tokens(model, attention), build()
    blocks = next(name for name, module in spread.named_modules() if isinstance(module, torch.nn.ModuleList))
    places = {name: "cpu" for name, module in spread.named_modules() if not list(module.children())}
    places = {name: place for name, place in places.items() if not name.startswith(blocks)}
    places |= {f"{blocks}.0": "cpu", f"{blocks}.1": "disk"}
    dispatch_model(spread, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert torch.equal(tokens(spread, swapped(spread)), expected)


def layer_weights(attention: SwappedAttention, name: str):
    if name == "window":
        return [Window(attention.slopes, 1.5)] * attention.layers
    draw = [
        PositionalLSH.draw(attention.slopes, 4, seed=3, layer=layer, weights=name) for layer in range(attention.layers)
    ]
    return draw


MEMORY = """
import resource, sys, torch
from tests.models.random_models import BUILD, swapped
from kernels import PositionalLSH
model = BUILD[sys.argv[2]](heads=4)
attention = swapped(model)
weights = [PositionalLSH.draw(attention.slopes, 16, seed=0, layer=i) for i in range(2)]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with torch.inference_mode(), attention.use(weights):
    model(torch.ones(1, 256, dtype=torch.long), logits_to_keep=1)
    before = peak()
    model(torch.ones(1, int(sys.argv[1]), dtype=torch.long), logits_to_keep=1, use_cache=True)
print(peak() - before)
"""


@pytest.mark.parametrize("family", BUILD)
def test_no_tensor_grows_with_the_square_of_the_tokens(family):
    """One float32 matrix of 16k x 16k is 1024 MB, one boolean mask 256 MB: a forward at 16k tokens
    stays far below."""
    done = subprocess.run([sys.executable, "-c", MEMORY, "16384", family], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 240, f"{float(done.stdout):.0f} MB"
