"""The check of every load, before the first sample: a few tokens through each way in which tasks
feed a model."""

import torch
from transformers import PreTrainedModel

from harness.common.errors import CannotLoad
from harness.models.cache import new_cache
from harness.models.swap import SwappedAttention
from kernels import attend
from kernels.impl.accuracy import LIMITS, relative

TOKENS, CHUNK, PADDING, DECODED = 24, 12, 7, 3
ROUNDINGS = 5  # how many times a kernel's own limit the logits of two ways may differ by: they go through all layers


@torch.inference_mode()
def check(model: PreTrainedModel, attention: SwappedAttention, *, source: str) -> None:
    """Under exact ALiBi: one forward, the same in chunks and then token by token from the cache,
    and from the cache with and without padding on the left must have the same logits, and those of
    the float64 oracle's attention.

    Raises CannotLoad where they do not, or are not finite: what the harness knows of the family is
    not what this version of transformers, or this checkpoint, computes.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    drawn = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    place = model.get_input_embeddings().weight.device
    ids = drawn if place.type == "meta" else drawn.to(place)  # accelerate brings them where it brings the weights
    whole = model(ids, use_cache=False).logits
    if not bool(torch.isfinite(whole).all()):
        raise CannotLoad(f"{source} computes NaN or infinite logits of its first tokens: its weights are damaged.")
    with attention.through(_oracle):
        ways = {"the float64 oracle's attention": (model(ids, use_cache=False).logits, whole)}
    ways["chunks and single tokens from the KV cache"] = (_in_pieces(model, ids), whole)
    padded = torch.cat([ids, ids.roll(PADDING, 1)])
    mask = torch.ones_like(padded)
    mask[1, :PADDING] = 0
    found = _in_pieces(model, padded, mask)
    ways["the KV cache of a batch"] = (found[:1], whole)
    ways["the KV cache with padding on the left"] = (found[1:, PADDING:], whole[:, :-PADDING])
    limit = ROUNDINGS * LIMITS[whole.dtype]
    for way, (got, expected) in ways.items():
        error = relative(got.float(), expected.double())
        if not error <= limit:
            raise CannotLoad(
                f"{source} computes other logits by {way} than by one forward: they differ by {error:.1e} of the "
                f"largest, where rounding explains {limit:.0e}. Use a version of transformers that constraints.txt "
                "names."
            )


def _oracle(q, k, v, weights, **options) -> torch.Tensor:
    """As `kernels.attend`, dense and in float64, in q's own dtype again."""
    return attend(q.double(), k.double(), v.double(), weights, **{**options, "kernel": "exact"}).to(q.dtype)


def _in_pieces(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (batch, tokens, vocabulary) from a cache that is filled by chunks, then token by
    token."""
    cache = new_cache(model, ids.shape[1])
    found, stop = [], 0
    for piece in (*ids[:, :-DECODED].split(CHUNK, 1), *ids[:, -DECODED:].split(1, 1)):
        stop += piece.shape[1]
        seen = {} if mask is None else {"attention_mask": mask[:, :stop]}
        found.append(model(piece, **cache.argument, use_cache=True, **seen).logits)
    return torch.cat(found, 1)
