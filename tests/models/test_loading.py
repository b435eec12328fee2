"""Which checkpoints are loaded, which are refused, and what identifies them."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.common.errors import CannotLoad, UserError
from harness.models.cache import new_cache
from harness.models.falcon import FALCON
from harness.models.families import FAMILIES
from harness.models.family import Architecture
from harness.models.load import load_model, load_tokenizer
from harness.models.memory import estimate
from harness.models.options import ArchitectureConfig, ModelConfig
from harness.models.spec import resolve_model
from kernels import alibi_slopes
from tests.models.random_models import BUILD, save
from tests.models.test_families import CLOSE, ids


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
        assert second["slopes"] != first["slopes"]
        assert second["weights"] == first["weights"]
        self.edit(folder, lambda raw: raw["attn_config"].update(softmax_scale=0.01))
        third = identity()
        assert third["config"] != second["config"]  # the same weights compute something else
        self.edit(folder, lambda raw: raw.update(transformers_version="9", torch_dtype="float16"))
        assert identity() == third
        save(folder, vocab_size=101)
        assert identity()["weights"] != first["weights"]
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
        assert identity()["tokenizer"] != first["tokenizer"]

    @pytest.mark.parametrize("family", ["bloom", "falcon"])
    @torch.inference_mode()
    def test_other_families_load_and_equal_stock(self, folder, family):
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        save(folder, family, vocab_size=vocabulary)
        expected = BUILD[family](vocab_size=vocabulary)(ids()).logits
        assert (self.load(folder).model(ids()).logits - expected).abs().max() <= CLOSE

    def test_falcon_with_rotary_positions_is_refused(self, folder):
        save(folder, "falcon", alibi=False)
        with pytest.raises(UserError, match="alibi=False"):
            self.load(folder)

    @torch.inference_mode()
    def test_a_device_map_reaches_accelerate_and_the_model_stays_where_it_was_put(self, folder, monkeypatch):
        """A machine without GPUs spreads over CPU and disk, which the map's name would not
        choose."""
        expected = self.load(folder).model(ids()).logits
        from_pretrained, given = AutoModelForCausalLM.from_pretrained, []

        def spread(source, **options):
            given.append(options.pop("device_map"))
            names = ("transformer.wte", "transformer.blocks.0", "transformer.norm_f", "lm_head")
            parts = dict.fromkeys(names, "cpu") | {"transformer.blocks.1": "disk"}
            return from_pretrained(source, **options, device_map=parts, offload_folder=str(folder / "offload"))

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spread)
        loaded = self.load(folder, device_map="balanced")
        assert given == ["balanced"]
        assert {p.device.type for p in loaded.model.transformer.blocks[1].parameters()} == {"meta"}
        assert (loaded.model(ids()).logits - expected).abs().max() <= CLOSE

    @torch.inference_mode()
    def test_the_first_layers_alone(self, folder):
        expected = self.load(folder).model(ids(), output_hidden_states=True).hidden_states[1]
        part = self.load(folder, layers=1)
        assert part.attention.layers == 1
        assert len(part.model.transformer.blocks) == 1
        found = part.model(ids(), output_hidden_states=True).hidden_states
        assert (part.model.transformer.norm_f(expected) - found[-1]).abs().max() <= CLOSE


class TestRandomWeights:
    def load(self, **options):
        sizes = {"layers": 3, "heads": 8, "width": 128, "vocabulary": 9065, **options.pop("sizes", {})}
        config = ArchitectureConfig(**{"family": "falcon", **sizes})
        spec = resolve_model(ModelConfig("m", "a/b", architecture=config, weights="random", **options), None)
        return load_model(spec, device=torch.device("cpu"), kernel="sdpa")

    def first_weight(self, **options) -> torch.Tensor:
        return next(self.load(**options).model.parameters())

    def test_the_seed_decides_and_the_global_generator_is_left_alone(self):
        before = torch.get_rng_state()
        first = self.first_weight()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(123)
        assert torch.equal(self.first_weight(), first)
        assert not torch.equal(self.first_weight(init_seed=1), first)

    @pytest.mark.parametrize("family", FAMILIES)
    @torch.inference_mode()
    def test_every_family_is_built_from_its_architecture_alone(self, family):
        loaded = self.load(sizes={"family": family})
        assert FAMILIES[family].architecture(loaded.model.config.to_dict()).layers == 3
        assert torch.isfinite(loaded.model(ids()).logits).all()
        assert len(loaded.tokenizer) <= loaded.model.config.vocab_size

    @pytest.mark.parametrize("kv_heads", [None, 1, 2])
    def test_fewer_key_heads_are_built_counted_and_cached(self, kv_heads):
        loaded = self.load(sizes={"kv_heads": kv_heads})
        architecture = FALCON.architecture(loaded.model.config.to_dict())
        assert architecture.kv_heads == kv_heads
        cache = new_cache(loaded.model, 64)
        with torch.inference_mode():
            loaded.model(ids(1), past_key_values=cache, use_cache=True)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert cache.allocated_bytes == cache.used_bytes == held
        assert held == estimate(architecture, itemsize=4, batch=1, tokens=64, masks=1, draws=1, kernel="sdpa").cache

    def test_layers_count(self):
        loaded = self.load(layers=2)
        assert loaded.attention.layers == loaded.model.config.num_hidden_layers == 2

    def test_a_tokenizer_that_cannot_be_had_is_a_sentence(self, monkeypatch):
        """Random weights have neither a folder nor a repository that it could name."""

        def refuse(*_, **__):
            raise OSError("no such file")

        monkeypatch.setattr("harness.models.load.AutoTokenizer.from_pretrained", refuse)
        monkeypatch.setattr("harness.models.load._TOKENIZERS", {})
        shape = ArchitectureConfig(family="mpt", layers=2, heads=4, width=64, vocabulary=9065)
        spec = resolve_model(ModelConfig(name="random", weights="random", architecture=shape), None)
        with pytest.raises(CannotLoad, match="embedded/tiny could not be loaded: no such file"):
            load_tokenizer(spec)

    def test_random_weights_without_a_shape_are_refused(self):
        with pytest.raises(UserError, match="give model.architecture"):
            resolve_model(ModelConfig(name="shapeless", weights="random"), None)

    def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(self):
        with pytest.raises(UserError, match="vocabulary"):
            self.load(sizes={"vocabulary": 97})


@pytest.mark.parametrize(
    ("family", "older"),
    [
        ("bloom", {"n_embed": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 50}),
        ("falcon", {"n_embed": 96, "n_layer": 3, "n_head": 6, "vocab_size": 50, "alibi": True, "multi_query": False}),
    ],
)
def test_older_names_in_a_configuration_are_read(family, older):
    found = FAMILIES[family].architecture(older)
    assert (found.width, found.layers, found.heads, found.vocabulary) == (96, 3, 6, 50)
    assert (
        FAMILIES[family].architecture(AutoConfig.for_model(family, **FAMILIES[family].mend(older)).to_dict()) == found
    )


def test_effective_slopes_of_falcon_are_divided_by_the_root_of_the_head_dimension():
    architecture = Architecture("falcon", layers=1, heads=8, width=8 * 64, vocabulary=50)
    assert torch.equal(FALCON.slopes(architecture), alibi_slopes(8) / 8)


def test_eviction_is_estimated_by_what_it_holds():
    sizes = {"itemsize": 2, "batch": 1, "tokens": 65536, "masks": 1, "draws": 1, "kernel": "sdpa"}
    architecture = Architecture("bloom", layers=2, heads=16, width=1024, vocabulary=100)
    whole, less = (estimate(architecture, **sizes, reach=reach) for reach in (None, 1000))
    assert less.cache == 2 * 2 * 1024 * (1000 + 512) * 2 < whole.cache
    assert less.activations < whole.activations
    assert less.weights == whole.weights
    short = {**sizes, "tokens": 300}
    assert estimate(architecture, **short, reach=1000) == estimate(architecture, **short)


def test_stock_is_estimated_with_its_matrices():
    sizes = {"itemsize": 2, "batch": 1, "tokens": 4096}
    architecture = Architecture("bloom", layers=2, heads=16, width=1024, vocabulary=100)
    needs = {
        kernel: estimate(architecture, **sizes, masks=1, draws=1, kernel=kernel).total
        for kernel in ("stock", "exact", "sdpa")
    }
    assert needs["stock"] == needs["exact"] > needs["sdpa"]
