"""Self-check of every loaded model: a few tokens by each way in which tasks feed a model."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from harness.common.errors import CannotLoad
from harness.models.cache import new_cache
from harness.models.swap import SwappedAttention
from kernels import Weights, attend
from kernels.impl.accuracy import LIMITS, relative

TOKENS, CHUNK, PADDING, DECODED = 24, 12, 7, 3
WEIGHTS_TOKENS, WEIGHTS_DIM = 160, 16  # of the call that `check_weights` makes
# logits may differ by this multiple of a kernel's error limit, because errors add up over layers
ROUNDING_FACTOR = 5


@torch.inference_mode()
def check_weights(weights: Iterable[Weights], kernel: str, device: torch.device) -> None:
    """Check that a kernel computes the attention that the weights define.

    `Weights.log_dense` is the definition, by which the float64 oracle computes; kernels use `reach`,
    `log_piece` or tables. One of each class of weights is held to the oracle in a short causal call,
    unless a row's keys depend on its scores: rounding may then choose another of two keys.

    Args:
        weights: weights of the layers of a model.
        kernel: the kernel of the cell.
        device: the device of the model.

    Raises:
        ArithmeticError: if the results differ by more than rounding.
    """
    for kind in {type(one): one for one in weights if not one.by_score}.values():
        generator = torch.Generator().manual_seed(0)
        shape = (1, kind.heads, WEIGHTS_TOKENS, WEIGHTS_DIM)
        q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
        exact = attend(q.double(), k.double(), v.double(), kind, kernel="exact")
        error = relative(attend(q.to(device), k.to(device), v.to(device), kind, kernel=kernel).cpu(), exact)
        if not error <= LIMITS[torch.float32]:
            raise ArithmeticError(
                f"kernel={kernel} computes another attention than {type(kind).__name__}.log_dense defines: they differ "
                f"by {error:.1e}, where rounding explains {LIMITS[torch.float32]:.0e}. Its reach and log_piece must "
                "give the numbers of log_dense."
            )


@torch.inference_mode()
def check_logits(model: PreTrainedModel, attention: SwappedAttention, *, source: str) -> None:
    """Check that all ways to compute logits under exact ALiBi agree.

    One forward is compared with the float64 oracle's attention. It is also compared with chunks and
    single tokens from the KV cache, for one sequence and for a batch with padding on the left.

    Args:
        model: the model.
        attention: its replaced attention.
        source: name of the checkpoint for messages.

    Raises:
        CannotLoad: if logits differ or are not finite. The version of transformers, or the
            checkpoint, then computes something other than the family's description.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    vocabulary, device = embeddings.shape[0], embeddings.device
    ids = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    if device.type != "meta":  # there accelerate moves inputs to the device of the weights
        ids = ids.to(device)
    whole = model(ids, use_cache=False).logits
    if not bool(torch.isfinite(whole).all()):
        raise CannotLoad(f"{source} computes NaN or infinite logits of its first tokens: its weights are damaged.")
    with attention.intercept(_oracle):
        ways = {"the float64 oracle's attention": (model(ids, use_cache=False).logits, whole)}
    ways["chunks and single tokens from the KV cache"] = (_in_pieces(model, ids), whole)
    padded = torch.cat([ids, ids.roll(PADDING, 1)])
    mask = torch.ones_like(padded)
    mask[1, :PADDING] = 0
    logits = _in_pieces(model, padded, mask)
    ways["the KV cache of a batch"] = (logits[:1], whole)
    ways["the KV cache with padding on the left"] = (logits[1:, PADDING:], whole[:, :-PADDING])
    limit = ROUNDING_FACTOR * LIMITS[whole.dtype]
    for way, (actual, expected) in ways.items():
        error = relative(actual.float(), expected.double())
        if not error <= limit:
            raise CannotLoad(
                f"{source} computes other logits by {way} than by one forward: they differ by {error:.1e} of the "
                f"largest, where rounding explains {limit:.0e}. Use a version of transformers that constraints.txt "
                "names."
            )


def _oracle(q, k, v, weights, **options) -> torch.Tensor:
    """Like `kernels.attend`, computed densely in float64 and returned in q's dtype."""
    return attend(q.double(), k.double(), v.double(), weights, **{**options, "kernel": "exact"}).to(q.dtype)


def _in_pieces(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (batch, tokens, vocabulary) from a cache that is filled by chunks, then by tokens."""
    cache = new_cache(model, ids.shape[1])
    logits, stop = [], 0
    for piece in (*ids[:, :-DECODED].split(CHUNK, 1), *ids[:, -DECODED:].split(1, 1)):
        stop += piece.shape[1]
        mask_argument = {} if mask is None else {"attention_mask": mask[:, :stop]}
        logits.append(model(piece, **cache.argument, use_cache=True, **mask_argument).logits)
    return torch.cat(logits, 1)
