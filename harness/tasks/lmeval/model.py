"""lm-eval's HFLM around the runner's model: prompts are never cut, and logits stay small."""

import copy
from collections.abc import Sequence
from typing import Any

import jinja2
import torch
from lm_eval.models.huggingface import HFLM

from harness.common.errors import UserError
from harness.models.cache import new_cache
from harness.models.load import LoadedModel

MAX_LOGIT_ROWS = 512  # positions with logits in memory at the same time


class RunnerLM(HFLM):
    """lm-eval's interface over a loaded model.

    context: limit of prompts, and window of rolling likelihoods, in tokens; generated tokens are
        extra.
    generates: maximum number of generated tokens.
    batch: requests per batch.
    evict: whether generation drops keys out of reach.
    chat_template, system_instruction, fewshot_as_multiturn: the frame of prompts. `framing` holds
        the matching arguments of a task's `fewshot_context`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        context: int,
        generates: int,
        batch: int,
        evict: bool = False,
        chat_template: bool = False,
        system_instruction: str | None = None,
        fewshot_as_multiturn: bool = True,
    ):
        super().__init__(
            pretrained=loaded.model,
            tokenizer=copy.deepcopy(loaded.tokenizer),  # HFLM sets its padding token
            max_length=context,
            batch_size=batch,
            softmax_dtype="float32",
        )
        self.context, self.generates, self.evict = context, generates, evict
        self._bare = False
        self.framing: dict[str, Any] = {"system_instruction": system_instruction} if system_instruction else {}
        if chat_template:
            self.framing |= {"apply_chat_template": True, "chat_template": self.apply_chat_template}
            self.framing |= {"fewshot_as_multiturn": fewshot_as_multiturn}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the messages in the chat template.

        lm-eval drops a system message that the template does not accept; the user's is never
        dropped.

        Raises:
            UserError: if the template rejects the messages.
        """
        try:
            if "system_instruction" in self.framing:
                return self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            return super().apply_chat_template(chat_history, add_generation_prompt)
        except jinja2.exceptions.TemplateError as error:
            raise UserError(
                f"The tokenizer's chat template does not take these messages ({error}): leave "
                "task.lm_eval.system_instruction or task.lm_eval.chat_template out."
            ) from None

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that is scored from its first token; raises UserError if none."""
        prefix = super().prefix_token_id
        if prefix is None:
            raise UserError(
                "This task scores a text from its first token on, and the tokenizer has no bos_token and no eos_token "
                "to put before it: name one in tokenizer_config.json."
            )
        return prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_
    ) -> list[int]:
        """Return the ids of a text, never cut, with the prefix unless the text begins with it.

        Args:
            string: the text.
            add_special_tokens: whether to add the prefix; None decides by the text.
            left_truncate_len: must be None.
        """
        assert left_truncate_len is None, "a prompt would have been cut"
        if add_special_tokens is None:
            begins = [t for t in (self.tokenizer.bos_token, self.tokenizer.eos_token) if t][:1]
            add_special_tokens = not self._bare and not string.startswith(tuple(begins))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, both (texts, longest), padded on the left; see `tok_encode`.

        Args:
            strings: the texts.
            padding_side: must be "left".
            left_truncate_len: at least the longest text, or None.
        """
        rows = [self.tok_encode(string) for string in strings]
        longest = max(map(len, rows))
        assert padding_side == "left" and longest <= (left_truncate_len or longest), "a prompt would have been cut"
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        return ids, (torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])).long()

    def tok_decode(self, tokens, skip_special_tokens: bool = True) -> str | None:
        """Return the text of tokens; None for None, since a tokenizer may lack an end of text."""
        return None if tokens is None else super().tok_decode(tokens, skip_special_tokens)

    def tokens(self, instance) -> int:
        """Return the number of input tokens of a request; for a rolling likelihood, of the text."""
        if instance.request_type == "loglikelihood":
            before, after = instance.args
            if before:
                return len(self.tok_encode(before + after)) - 1  # the last token is not an input
            ids = self.tok_encode(after, add_special_tokens=False)
            return len(ids) - (ids[:1] == [self.prefix_token_id])
        return len(self.tok_encode(instance.args[0]))

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text in nats, with the prefix token added only once."""
        self._bare = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self._bare = False

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Return the generated text of each request."""
        self._max_length = self.context + self.generates
        try:
            return super().generate_until(requests, disable_tqdm=True)
        finally:
            self._max_length = self.context

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs) -> torch.Tensor:
        cache = new_cache(self.model, max_length, evict=self.evict)
        kwargs |= {**cache.argument, "prefill_chunk_size": cache.chunk}
        with torch.inference_mode():
            return super()._model_generate(context, max_length, stop, **kwargs)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return, for each continuation, its log-likelihood in nats and whether it is greedy.

        The softmax is in float32. Logits exist for MAX_LOGIT_ROWS tokens of a continuation at a
        time, never for a whole prompt.
        """
        results = []
        size = override_bs or self.batch_size
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            inputs = [(before + after)[:-1] for _, before, after in batch]
            longest = max(len(tokens) for tokens in inputs)
            assert longest <= self.max_length, "a prompt would have been cut"
            # right padding needs no mask: causality hides it
            ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in inputs], device=self.device)
            hidden = self.model.base_model(ids, use_cache=False)[0]
            for row, tokens, (_, _, after) in zip(hidden, inputs, batch, strict=True):
                results.append(self._likelihood(row[len(tokens) - len(after) : len(tokens)], torch.tensor(after)))
        return results

    def _likelihood(self, hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[float, bool]:
        total, greedy = 0.0, True
        head = self.model.get_output_embeddings()
        chunks = zip(hidden.split(MAX_LOGIT_ROWS), tokens.to(hidden.device).split(MAX_LOGIT_ROWS), strict=True)
        for rows, targets in chunks:
            logits = head(rows).float()
            if not bool(torch.isfinite(logits).all()):
                raise FloatingPointError("The model's logits are not finite (NaN or infinite).")
            likelihood = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])
            total += float(likelihood.double().sum())
            greedy = greedy and bool((logits.argmax(1) == targets).all())
        return total, greedy
