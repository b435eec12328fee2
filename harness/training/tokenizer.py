"""The tokenizers of the embedded models, with a common pre-tokenizer.

For retrieval prompts it is Unigram over an explicit vocabulary, without training. All tokens have
equal scores, so that the likeliest segmentation has the fewest tokens. Known pieces stay whole, and
other text falls back to bytes. For novels it is byte-pair encoding trained on them.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

END_TOKEN = "<|endoftext|>"
UNKNOWN_TOKEN = "<|unknown|>"
PIECE_PATTERN = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
PIECE_SCORE = -10.0


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Return the split into up to 3 digits, words with leading space, punctuation, and spaces."""
    split = pre_tokenizers.Split(Regex(PIECE_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def vocabulary(fixed: Iterable[str], keys: Iterable[str]) -> tuple[list[str], int]:
    """Return all tokens in order of their ids, and the number before pieces that only `keys` need.

    The order: specials, 256 bytes, strings of 1 to 3 digits, pieces of `fixed`, pieces of `keys`.
    """
    cut = pre_tokenizer()
    digits = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
    singles = sorted(pre_tokenizers.ByteLevel.alphabet())

    def pieces(texts: Iterable[str]) -> list[str]:
        return sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})

    core = list(dict.fromkeys([END_TOKEN, UNKNOWN_TOKEN, *singles, *digits, *pieces(fixed)]))
    return list(dict.fromkeys([*core, *pieces(keys)])), len(core)


def build(fixed: Iterable[str], keys: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each piece of the texts, and bytes for other text.

    Args:
        fixed: texts whose pieces come first.
        keys: texts of keys.
        max_length: the model's limit in tokens, which the tokenizer reports.
    """
    tokens, _ = vocabulary(fixed, keys)
    model = Unigram([(token, PIECE_SCORE) for token in tokens], tokens.index(UNKNOWN_TOKEN), byte_fallback=False)
    return wrap(model, max_length, unk_token=UNKNOWN_TOKEN)


def learn(texts: Iterable[str], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer trained on texts.

    Args:
        texts: the texts.
        size: number of tokens, including the end token and 256 bytes.
        max_length: the model's limit in tokens, which the tokenizer reports.
    """
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer.model, max_length)


def wrap(model: BPE | Unigram, max_length: int, **special: str) -> PreTrainedTokenizerFast:
    """Return a transformers tokenizer.

    Args:
        model: the model of pieces.
        max_length: the model's limit in tokens, which the tokenizer reports.
        special: further special tokens.
    """
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        **special,
    )
