"""`attention` on loaded models: what it computes, what transformers does with it, and that it
leaves no trace."""

import copy

import accelerate
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from harness import attention
from harness.common.errors import CannotLoad, UserError
from harness.models.families import FAMILIES
from kernels import PositionalLSH, Window, equal_cost_cutoff
from tests.experiment.test_drop_in import GREEDY, difference
from tests.models.random_models import BUILD, bloom, falcon, mpt, swapped
from tests.models.test_families import CLOSE, ids, padded


@pytest.fixture(params=BUILD)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return BUILD[name]()


def slopes_of(model) -> torch.Tensor:
    family = FAMILIES[model.config.model_type]
    return family.slopes(family.architecture(model.config.to_dict()))


def instance_attributes(model) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


class TestReplacing:
    @torch.inference_mode()
    def test_the_model_is_its_own_again_after_the_block(self, model):
        expected, before, config = model(ids()).logits, instance_attributes(model), copy.deepcopy(model.config)
        with attention(model, "plsh", masks=4):
            assert difference(model(ids()).logits, expected) > 0.1
        assert torch.equal(model(ids()).logits, expected)
        assert instance_attributes(model) == before
        assert model.config == config

    @torch.inference_mode()
    def test_it_is_its_own_again_after_an_error(self, model):
        expected = model(ids()).logits
        with pytest.raises(RuntimeError), attention(model, "alibi"):
            raise RuntimeError
        assert torch.equal(model(ids()).logits, expected)

    @pytest.mark.parametrize("kernel", ["auto", "sdpa"])
    @torch.inference_mode()
    def test_masks_are_those_of_seed_draw_and_layer(self, model, kernel):
        other, slopes = copy.deepcopy(model), slopes_of(model)
        options = {"seed": 5, "draw": 3, "weights": "rb", "sinks": 4}
        with attention(model, "plsh", masks=4, kernel=kernel, **options):
            found = model(ids()).logits
        oracle = swapped(other, kernel="exact")
        with oracle.use([PositionalLSH.draw(slopes, 4, layer=layer, **options) for layer in range(2)]):
            assert difference(found, other(ids()).logits) <= CLOSE

    @torch.inference_mode()
    def test_a_window_has_its_cutoff_or_the_cost_of_masks(self, model):
        other, slopes = copy.deepcopy(model), slopes_of(model)
        oracle = swapped(other, kernel="exact")
        matched = equal_cost_cutoff(slopes, 2, 64, match="fused")
        for options, cutoff in (({"cutoff": 1.5}, 1.5), ({"masks": 2, "context": 64}, matched)):
            with attention(model, "window", **options), oracle.use([Window(slopes, cutoff)] * 2):
                assert difference(model(ids()).logits, other(ids()).logits) <= CLOSE

    @torch.inference_mode()
    def test_without_a_block_it_stays_until_it_is_removed(self, model):
        expected = model(ids()).logits
        handle = attention(model, "plsh", masks=4)
        assert difference(model(ids()).logits, expected) > 0.1
        assert "PLSH S=4" in repr(handle)
        handle.remove()
        handle.remove()
        assert torch.equal(model(ids()).logits, expected)
        assert "removed" in repr(handle)

    @torch.inference_mode()
    def test_several_may_be_removed_in_any_order(self, model):
        expected = model(ids()).logits
        first = attention(model, "window", cutoff=0.5)
        window = model(ids()).logits
        second = attention(model, "plsh", masks=4)
        with attention(model, "stock"):
            assert torch.equal(model(ids()).logits, expected)
        masks = model(ids()).logits
        assert min(difference(masks, window), difference(masks, expected)) > 0.1
        first.remove()
        assert torch.equal(model(ids()).logits, masks)
        third = attention(model, "window", cutoff=0.5)
        second.remove()
        assert torch.equal(model(ids()).logits, window)
        third.remove()
        assert torch.equal(model(ids()).logits, expected)

    @torch.inference_mode()
    def test_a_model_that_the_harness_has_loaded_is_exact_again(self, model):
        swapped(model)
        exact = model(ids()).logits
        with attention(model, "window", cutoff=0.5):
            assert difference(model(ids()).logits, exact) > 0.1
        assert torch.equal(model(ids()).logits, exact)

    @torch.inference_mode()
    def test_another_draw(self, model):
        with attention(model, "plsh", masks=4) as handle:
            first = model(ids()).logits
            handle.redraw(1)
            second = model(ids()).logits
            handle.redraw(0)
            assert torch.equal(model(ids()).logits, first)
            assert difference(second, first) > 0.1
        with attention(model, "plsh", masks=4, draw=1):
            assert torch.equal(model(ids()).logits, second)
        with pytest.raises(UserError, match="removed"):
            handle.redraw(2)

    @torch.inference_mode()
    def test_a_deep_copy_keeps_it(self, model):
        expected = model(ids()).logits
        with attention(model, "plsh", masks=4):
            other, masks = copy.deepcopy(model), model(ids()).logits
        assert torch.equal(other(ids()).logits, masks)
        assert torch.equal(model(ids()).logits, expected)


class TestTransformers:
    """With exact ALiBi, stock transformers is the reference."""

    @pytest.mark.parametrize(
        "options",
        [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}, {"num_beams": 2, "do_sample": True}],
        ids=str,
    )
    @torch.inference_mode()
    def test_generation(self, model, options):
        x, mask = padded(ids(2, 30), [0, 9])
        found = []
        for kind in ("stock", "alibi"):
            torch.manual_seed(3)
            with attention(model, kind):
                found.append(model.generate(x, attention_mask=mask, **{**GREEDY, **options}))
        assert torch.equal(*found)

    @torch.inference_mode()
    def test_generation_from_its_own_cache(self, model):
        x, mask = padded(ids(2, 40), [0, 9])
        with attention(model, "window", cutoff=0.3, sinks=2, evict=True) as handle:
            expected = model.generate(x, attention_mask=mask, **GREEDY)
            own = handle.cache(52)
            assert torch.equal(model.generate(x, attention_mask=mask, **GREEDY, **own), expected)

    @torch.inference_mode()
    def test_a_pipeline(self, checkpoint):
        words = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        writer = pipeline("text-generation", model=model, tokenizer=words, device="cpu")
        options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
        prompts = ["one two three", "one"]
        expected = writer(prompts, **options)
        with attention(writer.model, "alibi"):
            assert writer(prompts, **options) == expected
        with attention(writer.model, "plsh", masks=1):
            assert writer(prompts, **options) != expected

    def trained(self, model, kind: str, folder, **options) -> list[torch.Tensor]:
        torch.manual_seed(0)
        data = [{"input_ids": row, "labels": row} for row in ids(4, 24)]
        settings = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "optim": "sgd"}
        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        with attention(model, kind, **options):
            Trainer(model, TrainingArguments(str(folder), **settings, **quiet), train_dataset=data).train()
        assert model.training  # as Trainer leaves it
        return [parameter.detach() for parameter in model.parameters()]

    def test_a_trainer(self, name, tmp_path):
        before = [parameter.detach() for parameter in BUILD[name]().parameters()]
        stock = self.trained(BUILD[name](), "stock", tmp_path)
        exact = self.trained(BUILD[name](), "alibi", tmp_path)
        masks = self.trained(BUILD[name](), "plsh", tmp_path, masks=4)
        moved = max(difference(a, b) for a, b in zip(stock, before, strict=True))
        assert max(difference(a, b) for a, b in zip(exact, stock, strict=True)) <= 1e-3 * moved
        assert max(difference(a, b) for a, b in zip(masks, stock, strict=True)) > 1e-2 * moved

    @torch.inference_mode()
    def test_a_model_with_an_adapter(self, name, model):
        part = {"mpt": "Wqkv", "bloom": "query_key_value", "falcon": "query_key_value"}[name]
        plain = model(ids()).logits
        torch.manual_seed(1)
        adapter = peft.LoraConfig(r=4, target_modules=[part], init_lora_weights=False, task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, adapter).eval()
        expected = wrapped(ids()).logits
        assert difference(expected, plain) > 0.01
        tokens = wrapped.generate(input_ids=ids(), **GREEDY)
        with attention(wrapped, "alibi"):
            assert difference(wrapped(ids()).logits, expected) <= CLOSE
            assert torch.equal(wrapped.generate(input_ids=ids(), **GREEDY), tokens)
        with attention(wrapped, "plsh", masks=4):
            assert difference(wrapped(ids()).logits, expected) > 0.1
        assert torch.equal(wrapped(ids()).logits, expected)

    @torch.inference_mode()
    def test_quantized_weights_are_computed_by_their_own_modules(self):
        """Here by the range of all activations of a call: a token depends on what is computed
        beside it."""
        model = torch.ao.quantization.quantize_dynamic(bloom(), {torch.nn.Linear})
        expected = model(ids()).logits
        assert difference(expected, bloom()(ids()).logits) > 10 * CLOSE
        with pytest.raises(CannotLoad, match="KV cache"):
            attention(model, "alibi")
        with attention(model, "alibi", check=False):
            assert difference(model(ids()).logits, expected) <= CLOSE

    @torch.inference_mode()
    def test_weights_that_are_brought_in_layer_by_layer(self, model):
        """accelerate's hooks, as a device map sets them."""
        expected = model(ids()).logits
        accelerate.cpu_offload(model, torch.device("cpu"))
        with attention(model, "alibi"):
            assert difference(model(ids()).logits, expected) <= CLOSE
        with attention(model, "plsh", masks=4):
            assert difference(model(ids()).logits, expected) > 0.1
        assert torch.equal(model(ids()).logits, expected)


class TestRefusals:
    @pytest.mark.parametrize(
        "options",
        [
            {"attn": "plhs"},
            {"kernel": "tritn"},
            {"masks": 0},
            {"seed": -1},
            {"sampler": "fixed", "weights": "rb"},
            {"sampler": "gama"},
            {"weights": "exactly"},
            {"sinks": 1.5},
            {"wieghts": "rb"},
            {"align": 1},
            {"attn": "alibi", "evict": True},
            {"attn": "window", "cutoff": -1.0},
            {"kernel": "triton"},
        ],
        ids=str,
    )
    def test_it_says_what_the_command_line_says(self, options, run):
        top = {key: options[key] for key in ("attn", "kernel", "masks", "seed") if key in options}
        own = {f"attn.{key}": value for key, value in options.items() if key not in top}
        words = [f"{key}={str(value).lower() if value is True else value}" for key, value in (top | own).items()]
        code, document, _, _ = run(*words, "device=cpu")
        assert code == 2
        with pytest.raises(UserError) as refused:
            attention(mpt(), options.pop("attn", "plsh"), **options)
        assert str(refused.value) == document["message"]

    def test_a_window_of_no_size(self):
        for name in ("window", "sliding"):
            with pytest.raises(UserError, match="or context="):
                attention(mpt(), name, masks=4)

    def test_models_without_alibi(self):
        with pytest.raises(UserError, match="alibi=False"):
            attention(falcon(alibi=False))
        with pytest.raises(UserError, match="no model of transformers"):
            attention(torch.nn.Linear(2, 2))
        with pytest.raises(UserError, match="give pipeline.model"):
            attention("bloom-560m")

    @torch.inference_mode()
    def test_damaged_weights_are_found_and_the_model_stays_as_it_was(self):
        model = bloom()
        before = instance_attributes(model)
        model.lm_head.weight[0, 0] = torch.nan
        with pytest.raises(CannotLoad, match="NaN"):
            attention(model, "plsh")
        assert instance_attributes(model) == before
        with attention(model, "plsh", check=False):
            model(ids())
