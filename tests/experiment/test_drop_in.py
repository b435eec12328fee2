"""What a stock model does, the model with replaced attention does: with exact ALiBi, the same
numbers."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, StaticCache

from harness import attention
from harness.common.errors import CannotLoad, UserError
from harness.models import selfcheck
from harness.models.cache import new_cache
from harness.models.swap import SwappedAttention
from kernels import PositionalLSH, Window
from tests.models.random_models import BUILD, falcon, swapped
from tests.models.test_families import CLOSE, ids, padded

GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "use_cache": True}


@pytest.fixture(params=BUILD)
def name(request):
    return request.param


@pytest.fixture
def stock(name):
    return BUILD[name]()


@pytest.fixture
def ours(name):
    model = BUILD[name]()
    attention(model, "alibi", kernel="sdpa", check=False)
    return model


def difference(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    error = (found - expected).abs()
    return float((error if mask is None else error[mask.bool()]).max())


class TestMasks:
    @pytest.mark.parametrize("ends", [[40, 33, 1], [40, 40, 12]])
    @torch.inference_mode()
    def test_padding_on_the_right_equals_stock_and_the_row_alone(self, stock, ours, ends):
        x = ids(3, 40)
        mask = torch.stack([torch.arange(40) < end for end in ends]).long()
        found = ours(x, attention_mask=mask).logits
        assert difference(found, stock(x, attention_mask=mask).logits, mask) <= CLOSE
        for row, end in enumerate(ends):
            assert difference(found[row, :end], ours(x[row : row + 1, :end]).logits[0]) <= CLOSE

    @torch.inference_mode()
    def test_padding_on_both_sides_equals_stock(self, stock, ours):
        x, mask = padded(ids(2, 40), [0, 6])
        mask[:, 31:] = 0
        assert difference(ours(x, attention_mask=mask).logits, stock(x, attention_mask=mask).logits, mask) <= CLOSE

    @torch.inference_mode()
    def test_padding_on_the_right_moves_no_mask_of_a_draw(self, name):
        model = BUILD[name]()
        attention = swapped(model)
        weights = [PositionalLSH.draw(attention.slopes, 4, seed=3, layer=layer) for layer in range(2)]
        mask = torch.ones(2, 40, dtype=torch.long)
        mask[1, 25:] = 0
        with attention.use(weights):
            together = model(ids(2, 40), attention_mask=mask).logits
            assert difference(together[1, :25], model(ids(2, 40)[1:, :25]).logits[0]) <= CLOSE

    @torch.inference_mode()
    def test_a_loss_over_a_batch_padded_on_the_right_equals_stock(self, stock, ours):
        x, mask = ids(2, 40), torch.ones(2, 40, dtype=torch.long)
        mask[1, 25:] = 0
        options = {"attention_mask": mask, "labels": x.masked_fill(mask == 0, -100)}
        assert abs(ours(x, **options).loss - stock(x, **options).loss) <= CLOSE

    def test_a_hole_is_refused_in_a_forward_and_after_padding_on_the_right(self, ours):
        mask = torch.ones(2, 40, dtype=torch.long)
        mask[1, 25:30] = 0
        with pytest.raises(ValueError, match="has a hole.*padding_side='left'"):
            ours(ids(2, 40), attention_mask=mask)
        with pytest.raises(ValueError, match="has a hole"):
            ours.generate(ids(2, 30), attention_mask=mask[:, :30], **GREEDY)

    def test_a_mask_of_pairs_is_refused(self, ours):
        with pytest.raises(ValueError, match="2-D padding mask"):
            ours(ids(2, 40), attention_mask=torch.ones(2, 1, 40, 40))

    @torch.inference_mode()
    def test_masks_of_every_type_mean_the_same(self, ours):
        x, mask = padded(ids(2, 40), [0, 6])
        expected = ours(x, attention_mask=mask).logits
        for other in (mask.bool(), mask.float()):
            assert torch.equal(ours(x, attention_mask=other).logits, expected)

    def test_more_than_causality_is_refused(self, ours):
        """Whatever makes transformers hand another mask to its builder: here attention in both
        directions."""
        ours.config.is_causal = False
        with pytest.raises(ValueError, match="a further mask was asked for"):
            ours(ids(2, 40))

    @torch.inference_mode()
    def test_sequences_in_one_row_are_refused_where_transformers_parts_them(self):
        """Recent versions part the sequences of one row by Falcon's position ids."""
        stock, ours, x = falcon(), falcon(), ids(1, 40)
        swapped(ours)
        places = torch.arange(20).repeat(2)[None]
        expected = stock(x, position_ids=places, use_cache=False).logits
        if difference(expected, stock(x, use_cache=False).logits) > CLOSE:
            with pytest.raises(ValueError, match="a row of its own"):
                ours(x, position_ids=places, use_cache=False)
        else:
            assert difference(ours(x, position_ids=places, use_cache=False).logits, expected) <= CLOSE


class TestConfiguration:
    @torch.inference_mode()
    def test_it_is_never_written_to(self, name, tmp_path):
        model = BUILD[name]()
        before, implementation = copy.deepcopy(model.config), model.config._attn_implementation
        attention = swapped(model)

        def unchanged() -> bool:
            parts = [module.config for module in model.modules() if hasattr(module, "config")]
            return all(part is model.config for part in parts) and (
                model.config == before and model.config._attn_implementation == implementation
            )

        assert unchanged()
        expected = model(ids()).logits
        assert unchanged()
        with pytest.raises(ValueError):
            model(ids(), attention_mask=torch.ones(2, 3))
        assert unchanged()
        with attention.use(None):
            model(ids())
            assert unchanged()
        assert unchanged()
        again = AutoModelForCausalLM.from_config(model.config)
        again.load_state_dict(model.state_dict())
        assert difference(again.eval()(ids()).logits, expected) <= CLOSE
        assert AutoModel.from_config(model.config).config._attn_implementation == implementation

    @torch.inference_mode()
    def test_what_is_set_later_is_followed(self, ours):
        ours.config.use_cache = False
        assert ours(ids()).past_key_values is None
        ours.config.use_cache = True
        assert ours(ids()).past_key_values.get_seq_length() == 64

    @torch.inference_mode()
    def test_a_saved_model_is_the_stock_one(self, stock, ours, tmp_path):
        ours.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert again.config._attn_implementation == stock.config._attn_implementation
        assert torch.equal(again(ids()).logits, stock(ids()).logits)

    @torch.inference_mode()
    def test_a_base_model_is_swapped_like_a_whole_one(self, stock, name):
        from harness.models.families import FAMILIES

        family, base = FAMILIES[name], BUILD[name]().base_model
        SwappedAttention(base, family, family.slopes(family.architecture(base.config.to_dict())), kernel="sdpa")
        expected = stock.base_model(ids()).last_hidden_state
        assert difference(base(ids()).last_hidden_state, expected) <= CLOSE

    @torch.inference_mode()
    def test_a_deep_copy_stands_alone(self, name):
        model = BUILD[name]()
        attention = swapped(model)
        other, expected = copy.deepcopy(model), model(ids()).logits
        with attention.use([Window(attention.slopes, 1.0)] * 2):
            assert torch.equal(other(ids()).logits, expected)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(other(ids()).logits, expected)


class TestOutputs:
    @pytest.mark.parametrize("options", [{}, {"multi_query": True, "parallel_attn": True}])
    @torch.inference_mode()
    def test_attention_weights_equal_stock(self, name, options):
        """Stock Falcon adds its bias twice where it returns weights: its slopes count double
        there."""
        options = options if name == "falcon" else {}
        stock, ours = BUILD[name](**options), BUILD[name](**options)
        swapped(ours, slope_factor=2.0 if name == "falcon" else 1.0)
        x, mask = padded(ids(3, 40), [0, 5, 31])
        expected = stock(x, attention_mask=mask, output_attentions=True)
        found = ours(x, attention_mask=mask, output_attentions=True)
        assert len(found.attentions) == 2
        for one, other in zip(found.attentions, expected.attentions, strict=True):
            assert one.shape == (3, 8, 40, 40)
            assert difference(one.transpose(1, 2), other.transpose(1, 2), mask) <= CLOSE
        assert difference(found.logits, ours(x, attention_mask=mask).logits, mask) <= CLOSE

    @pytest.mark.parametrize("weights", ["count", "window"])
    @torch.inference_mode()
    def test_attention_weights_are_those_in_use(self, name, weights):
        model = BUILD[name]()
        attention = swapped(model)
        local = {
            "window": Window(attention.slopes, 1.5),
            "count": PositionalLSH.draw(attention.slopes, 4, seed=3, layer=0),
        }[weights]
        with attention.use([local] * 2):
            found = model(ids(2, 40), output_attentions=True).attentions[0]
        assert difference(found.sum(-1), torch.ones(2, 8, 40)) <= CLOSE
        tokens = torch.arange(40)
        reached = (local.log_dense(tokens, tokens) > -torch.inf) & (tokens <= tokens[:, None])
        assert torch.equal(found > 0, reached.expand_as(found))

    @torch.inference_mode()
    def test_attention_weights_of_generated_tokens(self, ours):
        found = ours.generate(ids(2, 20), output_attentions=True, return_dict_in_generate=True, **GREEDY)
        assert [step[0].shape for step in found.attentions[:2]] == [(2, 8, 20, 20), (2, 8, 1, 21)]
        again = ours(found.sequences, output_attentions=True).attentions[1]
        assert difference(found.attentions[3][1][:, :, 0], again[:, :, 22, :23]) <= CLOSE

    @torch.inference_mode()
    def test_attention_weights_of_a_cache_that_dropped_keys_are_refused(self, name):
        model = BUILD[name]()
        attention = swapped(model)
        with attention.use([Window(32 * attention.slopes, 2.0, 3)] * 2):
            cache = new_cache(model, 160, evict=True, chunk=16)
            with pytest.raises(ValueError, match="evict=False"):
                for part in ids(1, 160).split(16, 1):
                    model(part, past_key_values=cache, use_cache=True, output_attentions=True)

    @torch.inference_mode()
    def test_hidden_states_and_tuples_equal_stock(self, stock, ours):
        options = {"output_hidden_states": True, "use_cache": False, "return_dict": False}
        logits, states = ours(ids(), **options)
        expected, expected_states = stock(ids(), **options)
        assert difference(logits, expected) <= CLOSE
        assert all(difference(a, b) <= 5 * CLOSE for a, b in zip(states, expected_states, strict=True))

    @torch.inference_mode()
    def test_embeddings_in_place_of_tokens(self, ours):
        embedded = ours.get_input_embeddings()(ids())
        assert torch.equal(ours(inputs_embeds=embedded).logits, ours(ids()).logits)
        assert torch.equal(ours.generate(inputs_embeds=embedded, **GREEDY), ours.generate(ids(), **GREEDY)[:, 64:])

    @torch.inference_mode()
    def test_more_tokens_in_the_vocabulary(self, stock, ours):
        for model in (stock, ours):
            torch.manual_seed(5)
            model.resize_token_embeddings(110)
        x = ids()
        x[:, ::7] = 105
        assert difference(ours(x).logits, stock(x).logits) <= CLOSE
        assert ours(x).logits.shape[-1] == 110


class TestGeneration:
    """Against stock generation, token for token."""

    @pytest.mark.parametrize(
        "options",
        [
            {"num_beams": 3},
            {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5},
            {"use_cache": False},
            {"prefill_chunk_size": 7},
            {"cache_implementation": "static"},
            {"repetition_penalty": 1.5},
        ],
        ids=str,
    )
    @torch.inference_mode()
    def test_of_a_batch_padded_on_the_left(self, name, stock, ours, options):
        x, mask = padded(ids(2, 30), [0, 9])
        options = {**GREEDY, "attention_mask": mask, **options}
        # stock Falcon with ALiBi takes no static cache
        compared = {**options, "cache_implementation": None} if name == "falcon" else options
        assert torch.equal(ours.generate(x, **options), stock.generate(x, **compared))

    @torch.inference_mode()
    def test_with_samples_of_one_seed(self, stock, ours):
        found = []
        for model in (stock, ours):
            torch.manual_seed(3)
            found.append(model.generate(ids(2, 30), **{**GREEDY, "do_sample": True}, num_return_sequences=2))
        assert torch.equal(*found)

    @pytest.mark.parametrize("how", ["assistant", "lookup"])
    @torch.inference_mode()
    def test_with_drafted_tokens(self, name, stock, ours, how):
        """The cache gives back what was drafted in vain."""
        assistant = BUILD[name](layers=1)
        swapped(assistant)
        options = {"assistant_model": assistant} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
        x = ids(1, 12).repeat(1, 3)
        assert torch.equal(ours.generate(x, **options, **GREEDY), stock.generate(x, **GREEDY))

    @torch.inference_mode()
    def test_from_a_cache_that_holds_the_beginning(self, ours):
        expected = ours.generate(ids(2, 30), **GREEDY)
        for cache in (DynamicCache(config=ours.config), StaticCache(ours.config, 60), new_cache(ours, 60)):
            assert cache.get_seq_length() == 0
            ours(ids(2, 30)[:, :19], past_key_values=cache, use_cache=True)
            assert torch.equal(ours.generate(ids(2, 30), past_key_values=cache, **GREEDY), expected)

    @torch.inference_mode()
    def test_of_rows_that_were_reordered_in_the_cache(self, ours):
        expected = ours(ids(2, 30)).logits[[1, 0, 1], 20:]
        for cache in (DynamicCache(config=ours.config), new_cache(ours, 40)):
            ours(ids(2, 30)[:, :20], past_key_values=cache, use_cache=True)
            cache.reorder_cache(torch.tensor([1, 0, 1]))
            again = ours(ids(2, 30)[[1, 0, 1], 20:], past_key_values=cache, use_cache=True).logits
            assert difference(again, expected) <= CLOSE


class TestTraining:
    def gradients(self, model, x, **options) -> list[torch.Tensor]:
        torch.manual_seed(7)
        model.zero_grad()
        model(x, labels=x, **options).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    def agree(self, found, expected) -> None:
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))

    @pytest.mark.parametrize("reentrant", [None, False, True])
    def test_gradients_equal_stock_with_and_without_checkpointing(self, stock, ours, reentrant):
        expected = self.gradients(stock.train(), ids(2, 40))
        assert max(float(gradient.abs().max()) for gradient in expected) > 1e-2
        if reentrant is not None:
            ours.gradient_checkpointing_enable({"use_reentrant": reentrant})
        self.agree(self.gradients(ours.train(), ids(2, 40)), expected)

    def test_dropout_of_the_same_seed_equals_stock(self, name):
        """Of the attention's weights, and of its output in BLOOM."""
        options = {
            "mpt": {},
            "bloom": {"attention_dropout": 0.3, "hidden_dropout": 0.2},
            "falcon": {"attention_dropout": 0.3},
        }[name]
        stock, ours = BUILD[name](**options), BUILD[name](**options)
        for module in [*stock.modules(), *ours.modules()]:
            if hasattr(module, "attn_dropout_p"):  # MPT's configuration takes whole numbers alone
                module.attn_dropout_p = 0.3
        swapped(ours)
        logits = []
        with torch.no_grad():
            for model in (stock.train(), ours.train()):
                torch.manual_seed(7)
                logits.append(model(ids(2, 40), use_cache=False).logits)
            assert difference(logits[-1], model.eval()(ids(2, 40)).logits) > 0.05
        assert difference(*logits) <= CLOSE


@torch.inference_mode()
def test_compiled_it_computes_the_same():
    """One family, for what torch's tracer takes, and nothing that was compiled before a replacement
    is used after it. Without a mask transformers parts the rows by Falcon's position ids when it is
    traced, whatever they are, which is refused."""
    model = falcon(layers=1)
    x, mask = padded(ids(2, 40), [0, 6])
    options = {"attention_mask": mask, "use_cache": False}
    stock = model(x, **options).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert difference(compiled(x, **options).logits, stock, mask) <= CLOSE
    with attention(compiled, "window", cutoff=0.5, kernel="sdpa", check=False):
        expected = model(x, **options).logits
        assert difference(compiled(x, **options).logits, expected, mask) <= CLOSE
        assert difference(expected, stock, mask) > 0.1
    assert difference(compiled(x, **options).logits, stock, mask) <= CLOSE


class TestArguments:
    """Of the attention's call, which versions of transformers name differently."""

    @pytest.fixture
    def renamed(self, name, monkeypatch):
        """Has the blocks hand the cache to their attention by another name."""

        def rename(new: str) -> None:
            model = BUILD[name]()
            attention = next(m for m in model.modules() if type(m).__name__.endswith("Attention"))
            block = next(m for m in model.modules() if attention in m.children())
            stock, place = type(block).forward, next(k for k, m in block.named_children() if m is attention)

            def forward(self, *args, **kwargs):
                module = getattr(self, place)
                inner = module.forward

                def renaming(*args, **kwargs):
                    cache = [kwargs.pop(k) for k in ("past_key_values", "layer_past", "cache") if k in kwargs]
                    return inner(*args, **kwargs, **{new: cache[0]})

                module.forward = renaming
                try:
                    return stock(self, *args, **kwargs)
                finally:
                    module.forward = inner

            monkeypatch.setattr(type(block), "forward", forward)

        return rename

    @pytest.mark.parametrize("new", ["past_key_values", "layer_past", "cache"])
    @torch.inference_mode()
    def test_a_cache_is_taken_by_any_name_that_a_version_has(self, ours, renamed, new):
        expected = ours.generate(ids(2, 20), **GREEDY)
        renamed(new)
        assert torch.equal(ours.generate(ids(2, 20), **GREEDY), expected)

    @torch.inference_mode()
    def test_what_is_not_known_is_refused_unless_it_is_none(self, ours, renamed):
        renamed("kept_states")
        ours(ids(2, 20), use_cache=False)
        with pytest.raises(UserError, match=r"unknown arguments to \w+Attention \(kept_states\).*constraints.txt"):
            ours(ids(2, 20), use_cache=True)

    def test_a_cache_that_is_lost_on_the_way_does_not_pass_the_check_of_a_load(self, name, renamed):
        model = BUILD[name]()
        attention = swapped(model)
        selfcheck.check_logits(model, attention, source="it")
        renamed({"mpt": "position_bias", "bloom": "use_cache", "falcon": "position_ids"}[name])  # idle ones
        with pytest.raises((CannotLoad, TypeError), match="KV cache|multiple values"):
            selfcheck.check_logits(model, attention, source="it")
