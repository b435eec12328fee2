"""The queries, keys and values of every layer of a model on a text."""

from collections.abc import Callable

import torch

from harness.models.families import model_family
from harness.models.load import LoadedModel
from kernels import attend

# (layer, q, k, v, scale of the scores), each (batch, heads, tokens, head_dim)
Visit = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], None]


@torch.inference_mode()
def capture(loaded: LoadedModel, ids: torch.Tensor, visit: Visit) -> None:
    """Call `visit` for each layer in turn, so that only one layer's tensors are held.

    A model with ALiBi runs under exact ALiBi. Other models run their own attention, and their
    queries and keys are those before any rotary embedding. Keys and values that several heads share
    are repeated.

    Args:
        loaded: the model.
        ids: token ids (batch, tokens).
        visit: receives a layer's tensors.
    """
    layer = 0

    def tell(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        nonlocal layer
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        visit(layer, q, k, v, scale)
        layer += 1

    def replaced(q, k, v, weights, *, scale, **options):
        tell(q, k, v, scale)
        return attend(q, k, v, weights, scale=scale, **options)

    model, batch = loaded.model, ids.to(loaded.model.device)
    base = model.base_model
    if loaded.swapped is not None:
        with loaded.swapped.use(loaded.swapped.exact), loaded.swapped.intercept(replaced):
            base(batch, use_cache=False)
        return
    family = model_family(model.config.model_type, rotary=True)
    projections = family.projections
    assert projections is not None, "a family without ALiBi has them"

    def before(module, arguments, options):
        hidden = arguments[0] if arguments else options["hidden_states"]
        tell(*projections(module, hidden))

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in model.modules() if family.is_attention(m)]
    try:
        base(batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
