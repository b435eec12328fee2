"""Odd checkpoints, tokenizers and configurations, each with what must come of it: the right number,
or a refusal."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.models.random_models import save
from tests.odd.make import (
    END,
    INDEX,
    SHARDS,
    TEXT,
    TINY,
    WEIGHTS,
    Edit,
    Maker,
    added,
    attention,
    checkpoint,
    index_that_says,
    lacking,
    processed,
    renamed,
    setting,
    sharded,
    tensors,
    without,
    write,
)


@dataclass(frozen=True)
class Stock:
    """The accuracy that transformers' own model has on the same prompts. edit: of config.json,
    before it is read by transformers, which takes fewer spellings of a value."""

    edit: Edit = lambda raw: None


@dataclass(frozen=True)
class Opposite:
    """One minus the accuracy before the edit, since the edit made each wrong choice of two the
    right one."""


@dataclass(frozen=True)
class Case:
    """make: writes it into a folder that is not there yet, and returns the overrides of a run.
    expected: an accuracy, or words of the refusal. edit: done to that folder between a first run
    and the one that counts."""

    kind: str
    odd: str
    make: Maker
    expected: float | str | Stock | Opposite
    edit: Callable[[Path], object] | None = None
    task: Sequence[str] = ()
    metric: str = "retrieval/accuracy"


RULER = {"task": ("task=ruler", "task.ruler.names=[niah_single_1]"), "metric": "niah_single_1/accuracy"}
HEAD = WEIGHTS["transformer.wte.weight"]
LAYER = "transformer.blocks.1."


def biases() -> dict[str, torch.Tensor]:
    return {f"transformer.blocks.{layer}.attn.out_proj.bias": torch.ones(128) for layer in range(2)}


def untied(weights) -> dict:
    return {"weights": {**WEIGHTS, "lm_head.weight": weights}, "config": setting(tie_word_embeddings=False)}


def cut_short(place: Path) -> None:
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def a_pointer(place: Path) -> None:
    (place / "model.safetensors").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\n")


def stale(place: Path) -> None:
    sharded(place)
    older = {**WEIGHTS, "transformer.norm_f.weight": WEIGHTS["transformer.norm_f.weight"] * 2}
    tensors(place / "model.safetensors", older)


def in_two_shards(place: Path) -> None:
    index = sharded(place)
    twice = {name: WEIGHTS[name] for name, file in index.items() if file == SHARDS[1]}
    tensors(place / SHARDS[1], {**twice, min(index): WEIGHTS[min(index)]})


def a_tensor_less(place: Path) -> None:
    index = sharded(place)
    lost = max(name for name, file in index.items() if file == SHARDS[0])
    tensors(place / SHARDS[0], {n: WEIGHTS[n] for n, file in index.items() if file == SHARDS[0] and n != lost})
    write(place / INDEX, {"metadata": {}, "weight_map": {n: f for n, f in index.items() if n != lost}})


def outside(place: Path) -> None:
    save_file(dict(WEIGHTS), place.parent / f"{place.name}-other.safetensors", metadata={"format": "pt"})
    index_that_says(first=f"../{place.name}-other.safetensors")(place)


def an_adapter(place: Path) -> None:
    write(place / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "x"})


def pickled(place: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save(dict(WEIGHTS), place / "pytorch_model.bin")


def eight_bits() -> dict[str, torch.Tensor]:
    name = f"{LAYER}ffn.up_proj.weight"
    return {**WEIGHTS, name: (WEIGHTS[name] * 100).to(torch.int8)}


W = "weights"
WEIGHT_CASES = [
    Case(W, "none: a copy of tiny", checkpoint(), 1.0),
    Case(W, "float32", checkpoint(weights={k: v.float() for k, v in WEIGHTS.items()}), 1.0),
    Case(W, "bfloat16", checkpoint(weights={k: v.bfloat16() for k, v in WEIGHTS.items()}), 1.0),
    Case(W, "names without `transformer.`", checkpoint(weights=renamed(lambda n: n.removeprefix("transformer."))), 1.0),
    Case(W, "names behind `model.`", checkpoint(weights=renamed(lambda n: f"model.{n}")), "begin with 'model.'"),
    Case(
        W,
        "names behind `_orig_mod.`, of torch.compile",
        checkpoint(weights=renamed(lambda n: f"_orig_mod.{n}")),
        "begin with '_orig_mod.'",
    ),
    Case(W, "a layer is lost", checkpoint(weights=lacking(LAYER)), r"lack weights of the model, .* \(6 in all\)"),
    Case(W, "one matrix is lost", checkpoint(weights=lacking(f"{LAYER}attn.Wqkv")), r"lack .*blocks\.1\.attn\.Wqkv"),
    Case(W, "a norm is lost", checkpoint(weights=lacking("norm_f")), r"lack .*transformer\.norm_f\.weight"),
    Case(
        W,
        "one layer more than config.json says",
        checkpoint(config=setting(n_layers=1)),
        r"hold tensors that have no place in the model, transformer\.blocks\.1",
    ),
    Case(
        W,
        "biases that the model has not",
        checkpoint(weights={**WEIGHTS, **biases()}),
        r"no place in the model, .*out_proj\.bias",
    ),
    Case(
        W,
        "learned positions beside ALiBi",
        checkpoint(weights={**WEIGHTS, "transformer.wpe.weight": torch.ones(8192, 128)}),
        r"no place in the model, transformer\.wpe\.weight",
    ),
    Case(
        W,
        "buffers that older versions saved",
        checkpoint(weights={**WEIGHTS, f"{LAYER}attn.masked_bias": torch.tensor(-1e4)}),
        1.0,
    ),
    Case(W, "an output of its own, equal to the embedding", checkpoint(**untied(HEAD.clone())), 1.0),
    Case(W, "an output of its own that differs", checkpoint(**untied(HEAD.roll(1, 0))), Stock()),
    Case(
        W,
        "an output of its own, but not in the files",
        checkpoint(config=setting(tie_word_embeddings=False)),
        "Set tie_word_embeddings=true",
    ),
    Case(
        W,
        "tied by config.json, and another output in the files",
        checkpoint(weights={**WEIGHTS, "lm_head.weight": HEAD.roll(1, 0)}),
        "set tie_word_embeddings=false",
    ),
    Case(
        W,
        "the vocabulary padded to a multiple of 64",
        checkpoint(
            weights={**WEIGHTS, "transformer.wte.weight": torch.cat([HEAD, HEAD.new_zeros(23, 128)])},
            config=setting(vocab_size=9088),
        ),
        1.0,
    ),
    Case(
        W, "a larger vocabulary in config.json", checkpoint(config=setting(vocab_size=9100)), "sizes of weights differ"
    ),
    Case(W, "a matrix in 8 bits", checkpoint(weights=eight_bits()), "quantized"),
    Case(
        W,
        "NaN in one of them",
        checkpoint(weights={**WEIGHTS, "transformer.norm_f.weight": torch.full((128,), float("nan"))}),
        "NaN or infinite logits",
    ),
]

F = "files"
FILE_CASES = [
    Case(F, "two shards and an index", checkpoint(after=sharded), 1.0),
    Case(F, "a shard is lost", checkpoint(after=lambda p: (sharded(p), (p / SHARDS[1]).unlink())), "of its 2 shards"),
    Case(F, "the index is lost", checkpoint(after=lambda p: (sharded(p), (p / INDEX).unlink())), "fetch the index"),
    Case(
        F, "a tensor is in no shard and not in the index", checkpoint(after=a_tensor_less), "lack weights of the model"
    ),
    Case(F, "a tensor is in two shards", checkpoint(after=in_two_shards), "is in model-00001.* and in model-00002"),
    Case(F, "the index points out of the folder", checkpoint(after=outside), "of the same folder alone"),
    Case(F, "the index points to /etc/passwd", checkpoint(after=index_that_says(first="/etc/passwd")), "'/etc/passwd'"),
    Case(
        F,
        "the index points to a pickle",
        checkpoint(after=lambda p: (index_that_says(first="pytorch_model.bin")(p), torch.save({}, p / SHARDS[0]))),
        "weights are read from .safetensors",
    ),
    Case(
        F,
        "the index is not JSON",
        checkpoint(after=lambda p: (sharded(p), (p / INDEX).write_text("{"))),
        "not an index of weights",
    ),
    Case(F, "an older model.safetensors beside the shards", checkpoint(after=stale), "two sets of weights that differ"),
    Case(F, "a pointer of git-lfs", checkpoint(after=a_pointer), "git lfs pull"),
    Case(F, "cut off in the middle", checkpoint(after=cut_short), "not a whole safetensors file"),
    Case(F, "pickled", checkpoint(after=pickled), "pickled weights are never loaded"),
    Case(
        F,
        "another name",
        checkpoint(after=lambda p: (p / "model.safetensors").rename(p / "tiny.safetensors")),
        "rename a single file",
    ),
    Case(F, "an adapter beside the weights", checkpoint(after=an_adapter), "merge_and_unload"),
    Case(F, "no folder", lambda place: ["model=local", f"model.path={place}"], "no such folder"),
    Case(
        F, "an empty folder", lambda p: (p.mkdir(parents=True), ["model=local", f"model.path={p}"])[1], "no config.json"
    ),
]


def from_family(family: str, edit) -> Maker:
    """A random model of another family with tiny's tokenizer."""

    def make(place: Path) -> list[str]:
        save(place, family, vocab_size=len(HEAD))
        for file in TINY.glob("tokenizer*"):
            shutil.copy(file, place)
        raw = json.loads((place / "config.json").read_text())
        edit(raw)
        write(place / "config.json", raw)
        return ["model=local", f"model.path={place}"]

    return make


C = "config.json"
GLU = {"ffn_type": "mptglu"}
CONFIG_CASES = [
    Case(C, "`norm_type: rmsnorm`", checkpoint(config=setting(norm_type="rmsnorm")), "norm_type='rmsnorm'"),
    Case(C, "`no_bias: false`", checkpoint(config=setting(no_bias=False)), "no_bias=False"),
    Case(C, "`logit_scale: 0.5`", checkpoint(config=setting(logit_scale=0.5)), "logit_scale=0.5"),
    Case(C, "`ffn_config: mptglu`", checkpoint(config=setting(ffn_config=GLU)), "ffn_type='mptglu'"),
    Case(C, "`expansion_ratio: 2`", checkpoint(config=setting(expansion_ratio=2)), "expansion_ratio=2"),
    Case(C, "`expansion_ratio: 4.0`", checkpoint(config=setting(expansion_ratio=4.0)), 1.0),
    Case(C, "`n_layers: 2.0`", checkpoint(config=setting(n_layers=2.0)), 1.0),
    Case(C, '`d_model: "128"`', checkpoint(config=setting(d_model="128")), "width='128': it must be a whole number"),
    Case(C, "`n_heads: 7`", checkpoint(config=setting(n_heads=7)), "n_heads|heads"),
    Case(C, "`attn_type: grouped_query_attention`", checkpoint(config=attention(kv_n_heads=2)), "kv_n_heads=2"),
    Case(
        C,
        "`attn_type: multiquery_attention`",
        checkpoint(config=attention(attn_type="multiquery_attention")),
        "attn_type='multiquery_attention'",
    ),
    Case(C, "`alibi: false`", checkpoint(config=attention(alibi=False)), "alibi"),
    Case(C, "`rope: true`", checkpoint(config=attention(rope=True)), "rope=True"),
    Case(C, "`qk_ln: true`", checkpoint(config=attention(qk_ln=True)), "qk_ln=True"),
    Case(C, "`qk_gn: true`", checkpoint(config=attention(qk_gn=True)), "qk_gn=True"),
    Case(
        C, "`sliding_window_size: 64`", checkpoint(config=attention(sliding_window_size=64)), "sliding_window_size=64"
    ),
    Case(C, "`softmax_scale: 1`", checkpoint(config=attention(softmax_scale=1)), Stock(attention(softmax_scale=1.0))),
    Case(C, "`clip_qkv: 6`", checkpoint(config=attention(clip_qkv=6)), Stock(attention(clip_qkv=6.0))),
    Case(C, "an unknown family", checkpoint(config=setting(model_type="gpt2")), "gpt2"),
    Case(C, "not JSON", checkpoint(after=lambda p: (p / "config.json").write_text("{")), "not valid JSON"),
    Case(C, "a list", checkpoint(after=lambda p: (p / "config.json").write_text("[]")), "in place of settings"),
    Case(C, "Falcon with rotary positions", from_family("falcon", setting(alibi=False)), "alibi=False"),
    Case(C, "Falcon with `activation: swiglu`", from_family("falcon", setting(activation="swiglu")), "swiglu"),
    Case(C, "BLOOM with a window", from_family("bloom", setting(sliding_window=8)), "sliding_window=8"),
]

G = "generation_config.json"
GENERATION = {
    "`repetition_penalty: 1.3`": {"repetition_penalty": 1.3},
    "`no_repeat_ngram_size: 3`": {"no_repeat_ngram_size": 3},
    "`do_sample`, temperature 2": {"do_sample": True, "temperature": 2.0, "top_k": 50, "top_p": 0.9, "min_p": 0.1},
    "`suppress_tokens`: digits": {"suppress_tokens": list(range(300, 1400))},
    "`num_beams: 4`": {"num_beams": 4},
    "`cache_implementation: static`": {"cache_implementation": "static"},
    "`max_length: 8`": {"max_length": 8},
    "`stop_strings`": {"stop_strings": ["1", "2", "3"]},
    "`forced_eos_token_id`": {"forced_eos_token_id": 0},
    "`eos_token_id`: digits": {"eos_token_id": list(range(300, 1400))},
}
GENERATION_CASES = [
    *(Case(G, odd, checkpoint(generation=values), 1.0) for odd, values in GENERATION.items()),
    Case(
        G,
        "all of them, in RULER",
        checkpoint(generation=dict(kv for v in GENERATION.values() for kv in v.items())),
        1.0,
        **RULER,
    ),
]


def no_vocabulary(place: Path) -> None:
    (place / "tokenizer.json").unlink()


def loose_vocabulary(place: Path) -> None:
    """The vocabulary of one kind of tokenizer without its merges."""
    words = [word for word, _ in json.loads((place / "tokenizer.json").read_text())["model"]["vocab"]]
    write(place / "vocab.json", {word: number for number, word in enumerate(words)})
    (place / "tokenizer.json").unlink()


def cuts_and_pads(raw: dict) -> None:
    raw["truncation"] = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None}
    raw["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}


T = "tokenizer"
SPECIAL = ("eos_token", "pad_token", "unk_token")
TOKENIZER_CASES = [
    Case(T, "no files", checkpoint(after=no_vocabulary), "holds no tokenizer"),
    Case(T, "vocab.json without merges.txt", checkpoint(after=loose_vocabulary), "."),
    Case(T, "no pad token", checkpoint(tokenizer_config=without("pad_token")), 1.0),
    Case(T, "no special tokens", checkpoint(tokenizer_config=without(*SPECIAL)), 1.0),
    Case(T, "no special tokens, in RULER", checkpoint(tokenizer_config=without(*SPECIAL)), 1.0, **RULER),
    Case(T, "puts BOS in front", checkpoint(tokenizer=processed(END, TEXT)), 1.0),
    Case(T, "appends EOS", checkpoint(tokenizer=processed(TEXT, END)), "appends '<|endoftext|>'"),
    Case(T, "pads on the right", checkpoint(tokenizer_config=setting(padding_side="right")), 1.0),
    Case(T, "cuts at 128 tokens and pads to 512", checkpoint(tokenizer=cuts_and_pads), 1.0),
    Case(
        T,
        "a token beyond the model's vocabulary",
        checkpoint(tokenizer=added(len(HEAD), "[PAD]")),
        f"as token {len(HEAD)}, and the model has {len(HEAD)} embeddings",
    ),
    Case(
        T, "an unknown class", checkpoint(tokenizer_config=setting(tokenizer_class="MyOwnTokenizer", auto_map={})), 1.0
    ),
    Case(T, "a digit as EOS", checkpoint(tokenizer_config=setting(eos_token="7")), "ordinary text among its special"),
    Case(
        T,
        "a class that splits otherwise than tokenizer.json",
        checkpoint(tokenizer_config=setting(tokenizer_class="GPT2Tokenizer")),
        "splits a text otherwise than its tokenizer.json",
    ),
    Case(T, "no model in tokenizer.json", checkpoint(tokenizer=setting(model=None)), "no tokenizer can be made"),
    Case(T, "EOS is a number", checkpoint(tokenizer_config=setting(eos_token=5)), "no tokenizer can be made"),
    Case(T, "a model_max_length that is a word", checkpoint(tokenizer_config=setting(model_max_length="x")), 1.0),
    Case(T, "lower case", checkpoint(tokenizer=setting(normalizer={"type": "Lowercase"})), "does not give back a text"),
    Case(
        T,
        "text cleaned up on decoding",
        checkpoint(tokenizer_config=setting(clean_up_tokenization_spaces=True)),
        1.0,
    ),
    Case(T, "a shorter model_max_length", checkpoint(tokenizer_config=setting(model_max_length=64)), 1.0),
    Case(
        T,
        "tokenizer_config.json is not JSON",
        checkpoint(after=lambda p: (p / "tokenizer_config.json").write_text("{")),
        "not valid JSON",
    ),
    Case(T, "tokenizer.json is not JSON", checkpoint(after=lambda p: (p / "tokenizer.json").write_text("{")), "."),
]

MODEL_CASES = [*WEIGHT_CASES, *FILE_CASES, *CONFIG_CASES, *GENERATION_CASES, *TOKENIZER_CASES]
