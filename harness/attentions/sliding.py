"""attn=sliding: exact ALiBi within a window of the same number of tokens in every head.

The number is given, or chosen so that the window costs as much as random masks. With sinks it is
the window of StreamingLLM (arXiv 2309.17453).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.attentions.base import Attention, Near, Style, word_option
from harness.attentions.masks import matched_pairs, matches, samplers
from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec


@dataclass
class Options:
    tokens: int | None = None
    # like the following options one of the masks whose cost is matched
    match: str | None = word_option(matches)  # fused
    sampler: str | None = word_option(samplers)  # gamma
    sinks: int = 0
    evict: bool = False
    align: int = 0
    near: Near = 0


@dataclass(frozen=True)
class Sliding(Attention):
    """A sliding window. tokens: the nearest keys that every row sees, its own included."""

    name = "sliding"
    Options = Options
    any_context = False  # the matched number of tokens changes with the context
    style = Style("sliding", "sliding window", "hexagon-open")

    tokens: int
    sinks: int = 0
    evict: bool = False

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        if cls.matched(options):
            pairs = matched_pairs(options, masks=masks, context=context, model=model, instead="attn.tokens")
            return cls.of_cost(pairs, model, context, sinks=options.sinks, evict=options.evict)
        if options.tokens < 1:
            raise UserError(f"attn.tokens must be at least 1, the row's own token, not {options.tokens}.")
        return cls(options.tokens, options.sinks, options.evict)

    @classmethod
    def matched(cls, options):
        return options.tokens is None

    @classmethod
    def of_cost(
        cls, pairs: float, model: "ModelSpec", context: int, *, sinks: int = 0, evict: bool = False, near: int = 0
    ) -> "Sliding":
        """Return the sliding window whose visited pairs are nearest to a number of pairs.

        Args:
            pairs: pairs of all heads over the context (`Attention.pairs`).
            model: the model, for its number of heads.
            context: tokens.
            sinks: first tokens that stay visible.
            evict: whether generation drops keys out of reach.
            near: nearest keys that every row sees, a lower bound of the number of tokens.
        """
        from kernels.methods.cost import sliding_tokens

        tokens = sliding_tokens(len(model.slopes), pairs, context, sinks=sinks)
        return cls(max(tokens, min(near, context)), sinks, evict)

    @property
    def label(self):
        return f"sliding window W={self.tokens}{self.label_suffix}"

    def weights_of(self, model, *, seed, draw):
        from kernels import Window

        return [Window(model.slopes, 0.0, self.sinks, self.tokens)] * model.architecture.layers

    def pairs(self, model, context):
        from kernels.methods.cost import window_pairs

        return {"fused": window_pairs(model.slopes, 0.0, context, sinks=self.sinks, near=self.tokens)}

    def costs_as_much_as(self, other, *, pairs, wanted, context):
        if (self.sinks, self.evict) != (other.sinks, other.evict) or self.tokens < other.near:
            return False
        # a token more or less changes the pairs of every row that is that far from the first token
        rows = max(context - self.sinks - self.tokens, 0) + (wanted < pairs)
        return abs(pairs - wanted) <= rows / (2 * context) + 1e-4 * wanted
