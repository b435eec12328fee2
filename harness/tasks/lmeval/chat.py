"""Chat templates of tokenizers, for lm-eval's --apply_chat_template."""

import hashlib

from harness.common.errors import UserError


def template_of(tokenizer, source: str) -> str:
    """Return the tokenizer's chat template.

    Raises:
        UserError: without a template, or if the template depends on the date.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # no template, or several without a default
        raise UserError(
            f"The tokenizer of {source} has no chat template: leave task.lm_eval.chat_template out, or take a model "
            "that was trained to chat."
        ) from None
    if "strftime_now" in template:
        raise UserError(
            f"The chat template of {source} writes the current date into every prompt, so that no run repeats "
            "another: write a date into the template in a copy of the model's folder."
        )
    return template


def text_hash(text: str) -> str:
    """Return "sha256:" and the hash of a text."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
