"""Which checkpoints are loaded, which are refused, and what identifies them."""

import json

import pytest
import torch

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models.load import load_model
from harness.models.spec import resolve_model
from kernels import alibi_slopes
from tests.models.random_models import save
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
        assert second["slopes"] != first["slopes"] and second["weights"] == first["weights"]
        save(folder, vocab_size=101)
        assert identity()["weights"] != first["weights"]
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
        assert identity()["tokenizer"] != first["tokenizer"]
