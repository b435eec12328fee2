"""The model as lm-eval sees it: its HFLM around the runner's model, without what would cut a prompt
or fill memory."""

import copy
from collections.abc import Sequence
from typing import Any

import jinja2
import torch
from lm_eval.models.huggingface import HFLM

from harness.common.errors import UserError
from harness.models.cache import new_cache
from harness.models.load import LoadedModel

ROWS = 512  # positions whose logits exist at one time


class RunnerLM(HFLM):
    """lm-eval's interface over a loaded model.

    context: the longest prompt in tokens, and the window of rolling likelihoods. Generated tokens
    come on top. generates: tokens a request may generate at most. evict: whether generation drops
    the keys that nothing can reach any more. chat_template, system_instruction,
    fewshot_as_multiturn: how prompts are framed; `framing` is what a task's `fewshot_context` gets
    of it.
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
        """lm-eval's, which leaves out the system message where the template takes none. UserError
        where that is the user's own."""
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
        """What stands before a text that is scored from its first token on. UserError without
        any."""
        found = super().prefix_token_id
        if found is None:
            raise UserError(
                "This task scores a text from its first token on, and the tokenizer has no bos_token and no eos_token "
                "to put before it: name one in tokenizer_config.json."
            )
        return found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_
    ) -> list[int]:
        """Ids of a text, with what the tokenizer puts in front unless that stands there already.
        Nothing is cut."""
        assert left_truncate_len is None, "a prompt would have been cut"
        if add_special_tokens is None:
            begins = [t for t in (self.tokenizer.bos_token, self.tokenizer.eos_token) if t][:1]
            add_special_tokens = not self._bare and not string.startswith(tuple(begins))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, (texts, tokens of the longest): each text as `tok_encode` has it, whatever
        stands beside it."""
        rows = [self.tok_encode(string) for string in strings]
        longest = max(map(len, rows))
        assert padding_side == "left" and longest <= (left_truncate_len or longest), "a prompt would have been cut"
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        return ids, (torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])).long()

    def tok_decode(self, tokens, skip_special_tokens: bool = True) -> str | None:
        """None for no token: a tokenizer without an end of text has none to stop at."""
        return None if tokens is None else super().tok_decode(tokens, skip_special_tokens)

    def tokens(self, instance) -> int:
        """Tokens a request feeds before it generates; of a rolling likelihood all tokens, which no
        length bounds."""
        if instance.request_type == "loglikelihood":
            before, after = instance.args
            if before:
                return len(self.tok_encode(before + after)) - 1  # what is fed leaves out the last token
            ids = self.tok_encode(after, add_special_tokens=False)
            return len(ids) - (ids[:1] == [self.prefix_token_id])
        return len(self.tok_encode(instance.args[0]))

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """In nats, of each text's own tokens after one beginning: what the tokenizer would add is
        that beginning."""
        self._bare = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self._bare = False

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        self._max_length = self.context + self.generates
        try:
            return super().generate_until(requests, disable_tqdm=True)
        finally:
            self._max_length = self.context

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **named) -> torch.Tensor:
        cache = new_cache(self.model, max_length, evict=self.evict)
        named |= {**cache.argument, "prefill_chunk_size": cache.chunk}
        with torch.inference_mode():
            return super()._model_generate(context, max_length, stop, **named)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would say the same) of each
        continuation, from float32 log-softmax. Logits exist for ROWS continuation tokens at a time,
        never for a whole prompt."""
        found = []
        size = override_bs or self.batch_size
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            fed = [(before + after)[:-1] for _, before, after in batch]
            longest = max(len(f) for f in fed)
            assert longest <= self.max_length, "a prompt would have been cut"
            # padded on the right and without a mask: causality hides what follows
            ids = torch.tensor([f + [0] * (longest - len(f)) for f in fed], device=self.device)
            hidden = self.model.base_model(ids, use_cache=False)[0]
            for row, f, (_, _, after) in zip(hidden, fed, batch, strict=True):
                found.append(self._likelihood(row[len(f) - len(after) : len(f)], torch.tensor(after)))
        return found

    def _likelihood(self, hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[float, bool]:
        total, greedy = 0.0, True
        head = self.model.get_output_embeddings()
        for rows, wanted in zip(hidden.split(ROWS), tokens.to(hidden.device).split(ROWS), strict=True):
            logits = head(rows).float()
            if not bool(torch.isfinite(logits).all()):
                raise FloatingPointError("The model's logits are not finite (NaN or infinite).")
            likelihood = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])
            total += float(likelihood.double().sum())
            greedy = greedy and bool((logits.argmax(1) == wanted).all())
        return total, greedy
