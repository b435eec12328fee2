"""The one place where a tokenizer is made ready for all tasks, and refused where it would change
what a model reads."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from harness.common.errors import CannotLoad

# words of the harness's own prompts, which models that read nothing else know too
SAMPLE = "The day is long. 1234567890"
NO_LIMIT = 10**30  # what transformers has where a tokenizer says nothing


def ready(tokenizer: PreTrainedTokenizerBase, *, source: str, vocabulary: int, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer without limits of its own: it cuts and pads nothing unless asked, and pads on
    the left.

    A tokenizer that has no padding token gets one that it has: padding is masked. What it puts
    before a text stays (a beginning of sequence). Raises CannotLoad for one with tokens beyond the
    model's `vocabulary`, for one that does not give back a text, for one that splits it otherwise
    than the tokenizer.json of its `folder`, and for one that appends to a text: a model would be
    asked to go on after its end.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.padding_side, tokenizer.model_max_length = "left", NO_LIMIT
    known = tokenizer.get_vocab()
    highest = max(known.values(), default=-1)
    if highest >= vocabulary:
        word = next(word for word, number in known.items() if number == highest)
        raise CannotLoad(
            f"The tokenizer of {source} has {word!r} as token {highest}, and the model has {vocabulary} embeddings: "
            "take both from one source."
        )
    plain = _ids(tokenizer, SAMPLE, special=False)
    if tokenizer.decode(plain, clean_up_tokenization_spaces=False).split() != SAMPLE.split():
        raise CannotLoad(
            f"The tokenizer of {source} does not give back a text: {SAMPLE!r} becomes {tokenizer.decode(plain)!r}. A "
            "file of it may be missing (tokenizer.json, or vocab.json and merges.txt)."
        )
    if tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False).split() != SAMPLE.split():
        raise CannotLoad(
            f"The tokenizer of {source} has ordinary text among its special tokens, which answers are read without: "
            f"{SAMPLE!r} becomes {tokenizer.decode(plain, skip_special_tokens=True)!r}. Take it out of its "
            "tokenizer_config.json."
        )
    if (folder / "tokenizer.json").is_file():
        written = Tokenizer.from_file(str(folder / "tokenizer.json"))
        written.no_truncation()
        written.no_padding()
        if written.encode(SAMPLE, add_special_tokens=False).ids != plain:
            raise CannotLoad(
                f"The tokenizer of {source} is made as {type(tokenizer).__name__}, by its tokenizer_config.json, and "
                "splits a text otherwise than its tokenizer.json: set tokenizer_class=PreTrainedTokenizerFast there."
            )
    whole = _ids(tokenizer, SAMPLE, special=True)
    before = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), None)
    if before is None:
        raise CannotLoad(f"The tokenizer of {source} splits a text otherwise where it adds special tokens.")
    if after := whole[before + len(plain) :]:
        raise CannotLoad(
            f"The tokenizer of {source} appends {tokenizer.decode(after)!r} to every text, after which a model has "
            "nothing to say: take that out of the post_processor in tokenizer.json (or set add_eos_token=false)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
