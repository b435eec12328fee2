"""lm-eval's model `plsh`: an HFLM with replaced attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.attentions import registry
from harness.cell import DRAWS
from harness.common.errors import UserError
from harness.experiment.replace import attention


class ReplacedLM(HFLM):
    """HFLM over a model whose attention `harness.attention` has replaced.

    A prompt that does not fit into max_length is refused with a UserError, never cut.

    Args:
        pretrained: the model, as HFLM takes it.
        attn, masks, context, seed, kernel: see `harness.attention`.
        draws: document i is answered under draw i mod draws, as in `harness.run`; by default 8 for
            random masks, 1 for other attentions.
        options: the method's own options (see `harness.attention`), and all arguments of HFLM.

    Raises:
        UserError: for a mistake in an option.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        attn: str = "plsh",
        masks: int = 16,
        context: int | None = None,
        seed: int = 0,
        draws: int | None = None,
        kernel: str = "auto",
        **options: Any,
    ):
        names = {option.name for option in registry.options()}
        method_options = {name: options.pop(name) for name in names & set(options)}
        super().__init__(pretrained, **{"softmax_dtype": "float32", **options})
        sizes: dict[str, Any] = {"masks": masks, "context": context, "seed": seed, "kernel": kernel}
        self.replacement = attention(self.model, attn, **sizes, **method_options)
        if draws is not None and draws < 1:
            raise UserError(f"draws must be at least 1, not {draws}.")
        self.draws = (draws or DRAWS) if self.replacement.random else 1

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._by_draw(requests, lambda part: super(ReplacedLM, self).generate_until(part, disable_tqdm))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._by_draw(requests, lambda part: super(ReplacedLM, self).loglikelihood(part, disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._by_draw(requests, lambda part: super(ReplacedLM, self).loglikelihood_rolling(part, disable_tqdm))

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = super().tok_batch_encode(strings, padding_side, None, truncation)
        self._refuse_cut(ids.shape[1], left_truncate_len or ids.shape[1], "generated")
        return ids, mask

    def _by_draw(self, requests: Sequence[Instance], answer: Callable[[list[Instance]], list]) -> list:
        """Answers in the order of the requests, each document under its own draw."""
        answers: list = [None] * len(requests)
        for draw in range(self.draws):
            indices = [index for index, request in enumerate(requests) if (request.doc_id or 0) % self.draws == draw]
            if indices:
                self.replacement.redraw(draw)
                for index, result in zip(indices, answer([requests[index] for index in indices]), strict=True):
                    answers[index] = result
        return answers

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        return super()._model_generate(context, max_length, stop, **kwargs, **self.replacement.cache(max_length))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], *args: Any, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        longest = max((len(context) + len(continuation) - 1 for _, context, continuation in requests), default=0)
        self._refuse_cut(longest, self.max_length, "scored")
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def _refuse_cut(self, tokens: int, room: int, purpose: str) -> None:
        if tokens > room:
            raise UserError(
                f"A prompt has {tokens} tokens and there is room for {room} before what is {purpose}: add max_length="
                f"{self.max_length + tokens - room} to --model_args. No prompt is ever cut."
            )
