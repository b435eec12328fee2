"""The tokenizers of the embedded models, which all cut a text in the same way before they look up
its pieces.

For retrieval prompts: Unigram over an explicit vocabulary, nothing trained. Every token has the
same score. The likeliest segmentation is then the one with the fewest tokens: a known piece stays
whole, and any other text falls back to its bytes. For novels: byte-pair encoding learnt from them.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
PIECES = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
SCORE = -10.0


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cut a text into up to 3 digits, words with the space before them, punctuation, spaces."""
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def vocabulary(fixed: Iterable[str], keys: Iterable[str]) -> tuple[list[str], int]:
    """All tokens in the order of their ids, and how many come before those that only `keys` need.

    The order: specials, 256 bytes, strings of 1 to 3 digits, pieces of `fixed`, pieces of `keys`.
    """
    cut = pre_tokenizer()
    digits = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
    singles = sorted(pre_tokenizers.ByteLevel.alphabet())

    def pieces(texts: Iterable[str]) -> list[str]:
        return sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})

    core = list(dict.fromkeys([END, UNKNOWN, *singles, *digits, *pieces(fixed)]))
    return list(dict.fromkeys([*core, *pieces(keys)])), len(core)


def build(fixed: Iterable[str], keys: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that keeps every piece of the texts as one token and can spell any other text.

    `max_length` (tokens) is only what the tokenizer reports as the model's limit.
    """
    tokens, _ = vocabulary(fixed, keys)
    model = Unigram([(token, SCORE) for token in tokens], tokens.index(UNKNOWN), byte_fallback=False)
    return wrap(model, max_length, unk_token=UNKNOWN)


def learn(texts: Iterable[str], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` tokens: the end token, 256 bytes, and pairs merged by how often the
    texts have them."""
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer.model, max_length)


def wrap(model: BPE | Unigram, max_length: int, **special: str) -> PreTrainedTokenizerFast:
    """The tokenizer around a model of pieces, in the form that transformers saves and loads."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        **special,
    )
