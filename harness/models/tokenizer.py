"""Prepare a tokenizer for all tasks, and refuse one that would change what a model reads."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from harness.common.errors import CannotLoad

# words of the harness's own prompts, because some embedded models know no others
SAMPLE_TEXT = "The day is long. 1234567890"
NO_LIMIT = 10**30  # transformers' default model_max_length


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, source: str, vocabulary: int, folder: Path
) -> PreTrainedTokenizerBase:
    """Return the tokenizer without truncation or padding of its own, and with padding on the left.

    A tokenizer without a padding token uses another of its tokens, since padding is masked. Tokens
    that it puts before a text, such as a beginning of sequence, stay.

    Args:
        tokenizer: the tokenizer, which is modified.
        source: name of the checkpoint for messages.
        vocabulary: embeddings of the model.
        folder: folder of the tokenizer's files.

    Raises:
        CannotLoad: if it has tokens beyond the vocabulary, does not decode a text to itself, splits
            it differently from its own tokenizer.json, or appends tokens to a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.padding_side, tokenizer.model_max_length = "left", NO_LIMIT
    token_ids = tokenizer.get_vocab()
    highest = max(token_ids.values(), default=-1)
    if highest >= vocabulary:
        word = next(word for word, token_id in token_ids.items() if token_id == highest)
        raise CannotLoad(
            f"The tokenizer of {source} has {word!r} as token {highest}, and the model has {vocabulary} embeddings: "
            "take both from one source."
        )
    plain = _ids(tokenizer, SAMPLE_TEXT, special=False)
    decoded = str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))
    if decoded.split() != SAMPLE_TEXT.split():
        raise CannotLoad(
            f"The tokenizer of {source} does not give back a text: {SAMPLE_TEXT!r} becomes {tokenizer.decode(plain)!r}."
            " A file of it may be missing (tokenizer.json, or vocab.json and merges.txt)."
        )
    visible = str(tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if visible.split() != SAMPLE_TEXT.split():
        raise CannotLoad(
            f"The tokenizer of {source} has ordinary text among its special tokens, which answers are read without: "
            f"{SAMPLE_TEXT!r} becomes {tokenizer.decode(plain, skip_special_tokens=True)!r}. Take it out of its "
            "tokenizer_config.json."
        )
    if (folder / "tokenizer.json").is_file():
        reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        reference.no_truncation()
        reference.no_padding()
        if reference.encode(SAMPLE_TEXT, add_special_tokens=False).ids != plain:
            raise CannotLoad(
                f"The tokenizer of {source} is made as {type(tokenizer).__name__}, by its tokenizer_config.json, and "
                "splits a text otherwise than its tokenizer.json: set tokenizer_class=PreTrainedTokenizerFast there."
            )
    special = _ids(tokenizer, SAMPLE_TEXT, special=True)
    start = next((n for n in range(len(special)) if special[n : n + len(plain)] == plain), None)
    if start is None:
        raise CannotLoad(f"The tokenizer of {source} splits a text otherwise where it adds special tokens.")
    if suffix := special[start + len(plain) :]:
        raise CannotLoad(
            f"The tokenizer of {source} appends {tokenizer.decode(suffix)!r} to every text, after which a model has "
            "nothing to say: take that out of the post_processor in tokenizer.json (or set add_eos_token=false)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
