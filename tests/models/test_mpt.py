"""Replaced attention against stock transformers, in float32."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import StaticCache

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models.load import load_model, new_cache
from harness.models.mpt import MPT
from harness.models.spec import resolve_model
from harness.models.swap import SwappedAttention
from kernels import PositionalLSH, Window, alibi_slopes
from tests.models.random_mpt import mpt, save_mpt, swapped

CLOSE = 2e-5
TOKENS = 64


@pytest.fixture(params=[{"heads": 8}, {"heads": 12, "clip_qkv": 0.8}, {"heads": 6, "softmax_scale": 0.2}], ids=str)
def pair(request):
    """(stock model, the same model with replaced attention)."""
    stock = mpt(**request.param)
    ours = copy.deepcopy(stock)
    swapped(ours)
    return stock, ours


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
def test_chunked_prefill_equals_whole():
    model = mpt()
    swapped(model)
    whole = model(ids()).logits
    cache = new_cache(model)
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids().split(23, dim=1)]
    assert (torch.cat(parts, 1) - whole).abs().max() <= CLOSE


@torch.inference_mode()
def test_kernels_agree_in_a_model():
    logits = []
    for kernel in ("exact", "sdpa"):
        model = mpt()
        swapped(model, kernel=kernel)
        logits.append(model(ids()).logits)
    assert (logits[0] - logits[1]).abs().max() <= CLOSE


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


@torch.inference_mode()
def test_more_tokens_than_max_seq_len():
    """Stock MPT cannot go past max_seq_len; a stock model with the bound raised is the reference."""
    short, long = mpt(max_seq_len=48), mpt(max_seq_len=128)
    with pytest.raises(RuntimeError):
        short(ids())
    swapped(short)
    assert (short(ids()).logits - long(ids()).logits).abs().max() <= CLOSE


@pytest.mark.parametrize("name", ["count", "rb", "exact", "window"])
@torch.inference_mode()
def test_decode_equals_prefill(name):
    model = mpt()
    attention = swapped(model)
    weights = layer_weights(attention, name)
    with attention.use(weights):
        whole = model(ids()).logits
        cache = new_cache(model)
        steps = [model(ids()[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(TOKENS)]
    assert (torch.cat(steps, 1) - whole).abs().max() <= CLOSE
    assert (whole - model(ids()).logits).abs().max() > 0.05  # the weights are in force inside `use` and only there


@pytest.mark.parametrize("name", ["count", "rb", "window"])
@torch.inference_mode()
def test_padded_row_equals_the_row_alone(name):
    """Masks live in token coordinates: batch mates must not move them."""
    model = mpt()
    attention = swapped(model)
    x, mask = padded(ids(3), [0, 5, 31])
    with attention.use(layer_weights(attention, name)):
        together = model(x, attention_mask=mask).logits
        for row, pad in enumerate((0, 5, 31)):
            alone = model(x[row : row + 1, pad:]).logits
            assert (together[row, pad:] - alone[0]).abs().max() <= CLOSE


@torch.inference_mode()
def test_layers_have_independent_masks():
    model = mpt()
    attention = swapped(model)
    independent = layer_weights(attention, "count")
    with attention.use(independent):
        one = model(ids()).logits
    with attention.use([independent[0]] * 2):
        shared = model(ids()).logits
    assert (one - shared).abs().max() > 1e-3


def test_static_cache_is_refused():
    model = mpt()
    swapped(model)
    cache = StaticCache(config=model.config, max_cache_len=TOKENS)
    with pytest.raises(ValueError, match="DynamicCache"):
        model(ids(), past_key_values=cache, use_cache=True)


def test_stray_4d_mask_is_refused():
    model = mpt()
    swapped(model)
    with pytest.raises(ValueError, match="2-D padding mask"):
        model(ids(), attention_mask=torch.zeros(2, 1, TOKENS, TOKENS))


def test_right_padding_is_refused():
    model = mpt()
    swapped(model)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, -3:] = 0
    with pytest.raises(ValueError, match="left padding"):
        model(ids(), attention_mask=mask)


@torch.inference_mode()
def test_hooked_modules_keep_their_hooks():
    """accelerate's device_map wraps forward; what it wraps is replaced, not the wrapper."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    stock = mpt()
    expected = stock(ids()).logits
    calls = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return super().pre_forward(module, *args, **kwargs)

    for module in stock.modules():
        if MPT.is_attention(module):
            add_hook_to_module(module, Counting(execution_device="cpu"))
    swapped(stock)
    assert (stock(ids()).logits - expected).abs().max() <= CLOSE
    assert len(calls) == 2  # once for each layer


def layer_weights(attention: SwappedAttention, name: str):
    if name == "window":
        return [Window(attention.slopes, 1.5)] * attention.layers
    draw = [
        PositionalLSH.draw(attention.slopes, 4, seed=3, layer=layer, weights=name) for layer in range(attention.layers)
    ]
    return draw


class TestLoading:
    def edit(self, folder, change):
        file = folder / "config.json"
        raw = json.loads(file.read_text())
        change(raw)
        file.write_text(json.dumps(raw))

    @pytest.fixture
    def folder(self, tmp_path, checkpoint):
        for file in checkpoint.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def load(self, folder, **options):
        spec = resolve_model(ModelConfig(name="m", path=str(folder), **options), None)
        return load_model(spec, device=torch.device("cpu"), kernel="sdpa")

    @torch.inference_mode()
    def test_integer_clip_qkv_loads(self, folder):
        """Published configurations hold 6 where MptConfig insists on 6.0."""
        self.edit(folder, lambda raw: raw["attn_config"].update(clip_qkv=6, softmax_scale=None))
        from transformers import AutoConfig

        with pytest.raises(Exception, match="clip_qkv"):
            AutoConfig.from_pretrained(folder)
        loaded = self.load(folder)
        assert loaded.model.config.attn_config.clip_qkv == 6.0
        assert torch.isfinite(loaded.model(ids()).logits).all()

    @torch.inference_mode()
    def test_loaded_weights_equal_stock(self, folder, checkpoint):
        from transformers import MptForCausalLM

        expected = MptForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(ids()).logits
        assert (self.load(folder).model(ids()).logits - expected).abs().max() <= CLOSE

    def test_bias_max_of_the_folder_counts(self, folder):
        self.edit(folder, lambda raw: raw["attn_config"].update(alibi_bias_max=16))
        assert torch.equal(self.load(folder).attention.slopes, alibi_slopes(8, bias_max=16))

    @pytest.mark.parametrize(("key", "value"), [("alibi", False), ("qk_ln", True), ("prefix_lm", True)])
    def test_variants_without_alibi_are_refused(self, folder, key, value):
        self.edit(folder, lambda raw: raw["attn_config"].update({key: value}))
        with pytest.raises(UserError, match=f"attn_config.{key}"):
            self.load(folder)

    def test_pickled_weights_are_refused(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="safetensors"):
            self.load(folder)

    def test_unknown_family_is_refused(self, folder):
        self.edit(folder, lambda raw: raw.update(model_type="gpt2"))
        with pytest.raises(UserError, match="mpt"):
            self.load(folder)

    def test_identity_follows_weights_slopes_and_tokenizer(self, folder, tmp_path_factory):
        def identity(**change):
            return resolve_model(ModelConfig(name="m", path=str(folder)), None).identity

        first = identity()
        self.edit(folder, lambda raw: raw["attn_config"].update(alibi_bias_max=16))
        second = identity()
        assert second["slopes"] != first["slopes"] and second["weights"] == first["weights"]
        save_mpt(folder, vocab_size=101)
        assert identity()["weights"] != first["weights"]
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
        assert identity()["tokenizer"] != first["tokenizer"]


MEMORY = """
import resource, sys, torch
from tests.models.random_mpt import mpt, swapped
from kernels import PositionalLSH
model = mpt(heads=4, max_seq_len=64)
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


def test_no_tensor_grows_with_the_square_of_the_tokens():
    """One float32 matrix of 16k x 16k is 1024 MB, one boolean mask 256 MB: a forward at 16k tokens stays far below."""
    done = subprocess.run([sys.executable, "-c", MEMORY, "16384"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 240, f"{float(done.stdout):.0f} MB"
