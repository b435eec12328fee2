"""The model as lm-eval sees it: its HFLM around the runner's model, without what would cut a prompt or fill memory."""

import copy
from collections.abc import Sequence

import torch
from lm_eval.models.huggingface import HFLM

from harness.models.cache import new_cache
from harness.models.load import LoadedModel

ROWS = 512  # positions whose logits exist at one time


class RunnerLM(HFLM):
    """lm-eval's interface over a loaded model.

    context: the longest prompt in tokens, and the window of rolling likelihoods. Generated tokens come on top.
    generates: tokens a request may generate at most.
    evict: whether generation drops the keys that nothing can reach any more.
    """

    def __init__(self, loaded: LoadedModel, *, context: int, generates: int, batch: int, evict: bool = False):
        super().__init__(
            pretrained=loaded.model,
            tokenizer=copy.deepcopy(loaded.tokenizer),  # HFLM sets its padding token
            max_length=context,
            batch_size=batch,
            softmax_dtype="float32",
        )
        self.context, self.generates, self.evict = context, generates, evict

    def tokens(self, instance) -> int:
        """Tokens a request feeds before it generates; of a rolling likelihood all tokens, which no length bounds."""
        if instance.request_type == "loglikelihood":
            before, after = instance.args
            # what is fed leaves out the last token; without a context, a token of the model's own begins it
            return len(self.tok_encode(before + after)) - 1 if before else len(self.tok_encode(after))
        return len(self.tok_encode(instance.args[0]))

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        self._max_length = self.context + self.generates
        try:
            return super().generate_until(requests, disable_tqdm=True)
        finally:
            self._max_length = self.context

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **named) -> torch.Tensor:
        cache = new_cache(self.model, max_length, evict=self.evict)
        named |= {"past_key_values": cache, "prefill_chunk_size": cache.chunk}
        with torch.inference_mode():
            return super()._model_generate(context, max_length, stop, **named)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would say the same) of each continuation, from float32
        log-softmax. Logits exist for ROWS continuation tokens at a time, never for a whole prompt."""
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
