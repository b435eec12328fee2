"""Chat templates, as lm-eval's --apply_chat_template has them: the tokenizer's own."""

import hashlib

from harness.common.errors import UserError


def template_of(tokenizer, source: str) -> str:
    """The tokenizer's chat template. UserError if it has none, or one that no later run would
    repeat."""
    try:
        found = tokenizer.get_chat_template()
    except ValueError:  # none, or several and no default
        raise UserError(
            f"The tokenizer of {source} has no chat template: leave task.lm_eval.chat_template out, or take a model "
            "that was trained to chat."
        ) from None
    if "strftime_now" in found:
        raise UserError(
            f"The chat template of {source} writes the date of the day into every prompt, so that no run repeats "
            "another: write a date into the template in a copy of the model's folder."
        )
    return found


def text_hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
