"""attn=allocated: exact ALiBi within a window of its own length in each head, read from a file.

`python -m harness.allocate` makes the file: it gives tokens to the heads whose predictions need them,
as MoA (arXiv 2406.14909) and DuoAttention (arXiv 2410.10819) do with other patterns.
"""

from dataclasses import dataclass, field

from harness.attentions.allocation import Lengths, allocated_pairs, read_allocation
from harness.attentions.base import Attention, Near, Style
from harness.common.errors import UserError


@dataclass
class Options:
    allocation: str | None = None  # a file
    sinks: int = 0
    evict: bool = False
    near: Near = 0


@dataclass(frozen=True)
class Allocated(Attention):
    """Windows of their own length in each head.

    allocation: hash of the file's content.
    tokens: nearest keys that each head of each layer sees; of a method read from a record, which
        holds the hash alone, there are none.
    near: the least length.
    fitted_text: hash of the text of the calibration; None for prompts, and of a method read from a
        record.
    """

    name = "allocated"
    Options = Options
    style = Style("other", "allocated windows", "pentagon")

    allocation: str
    tokens: Lengths = field(default=(), repr=False)
    sinks: int = 0
    evict: bool = False
    near: int = 0
    fitted_text: str | None = field(default=None, repr=False)

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        if not options.allocation:
            raise UserError("attn=allocated needs attn.allocation=FILE, which python -m harness.allocate makes.")
        found = read_allocation(options.allocation, model)
        return cls(found.digest, found.tokens, options.sinks, options.evict, options.near, found.text)

    @property
    def identity(self):
        return {key: value for key, value in super().identity.items() if key not in ("tokens", "fitted_text")}

    @property
    def label(self):
        return f"windows allocated by {self.allocation[:6]}{self.label_suffix}"

    @property
    def variant(self):
        return [self.allocation[:6], *super().variant]

    def weights_of(self, model, *, seed, draw):
        import torch

        from kernels import Window

        lengths = torch.tensor(self.tokens).clamp_min(self.near)
        return [Window.of_tokens(model.slopes, layer, self.sinks) for layer in lengths]

    def pairs(self, model, context):
        return {"fused": allocated_pairs(self.tokens, context, self.sinks, self.near)} if self.tokens else {}

    def facts(self, model):
        return {"tokens_per_head": [list(layer) for layer in self.tokens]}
