"""Replace the attention of an already loaded model, for a `with` block or for good."""

from types import TracebackType
from weakref import WeakSet

import torch

from harness.attentions.registry import ATTENTIONS, choose_attention
from harness.cell import Cell
from harness.common.errors import UserError, choose
from harness.common.preflight import refuse_foreign_kernels
from harness.experiment.compose import compose_config, option_words
from harness.experiment.plan import to_run_config
from harness.experiment.refusals import refuse_kernel
from harness.models.families import FAMILIES, model_family
from harness.models.spec import DTYPES, ModelSpec, parse_architecture

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import PreTrainedModel  # noqa: E402

from harness.models import selfcheck  # noqa: E402
from harness.models.cache import new_cache  # noqa: E402
from harness.models.swap import SwappedAttention  # noqa: E402
from kernels.auto import CHOSEN  # noqa: E402
from kernels.common.dtypes import dtype_name  # noqa: E402

ANY_CONTEXT = 2**31 - 1  # tokens, for attentions that do not depend on the context
COMPILED_KERNELS = ("triton", "flex")  # they take only the types in DTYPES

_checked: WeakSet[PreTrainedModel] = WeakSet()


class Replacement:
    """The replaced attention of one model, until `remove` is called or its `with` block ends."""

    def __init__(self, model: PreTrainedModel, swapped: SwappedAttention, cell: Cell, draw: int):
        self._model, self._swapped, self._cell = model, swapped, cell
        self._held = swapped.hold(cell.weights(draw), cell.kernel)
        self._in_place = True
        self.draw = draw

    @property
    def label(self) -> str:
        """The attention's name in tables."""
        return self._cell.attention.label

    @property
    def random(self) -> bool:
        """Whether the attention depends on the draw."""
        return self._cell.attention.random

    def redraw(self, draw: int) -> None:
        """Use another draw of the masks; attention without random masks does not change.

        Raises:
            UserError: if the attention was removed, or `draw` is out of range.
        """
        _check_draw(draw)
        if not self._in_place:
            raise UserError("This attention was removed: replace it anew.")
        if self.random and draw != self.draw:
            weights = self._cell.weights(draw)
            assert weights is not None, "an attention with masks"
            self._swapped.change(self._held, weights)
        self.draw = draw

    def cache(self, tokens: int) -> dict:
        """Return arguments of `generate` for an empty KV cache in preallocated buffers.

        tokens: capacity for each sequence, prompt and generated tokens together. With evict=True
        the cache drops keys that no later token can reach.
        """
        cache = new_cache(self._model, tokens, evict=self._cell.attention.evict)
        return {**cache.argument, "prefill_chunk_size": cache.chunk}

    def remove(self) -> None:
        """Restore the previous attention; a second call does nothing."""
        if not self._in_place:
            return
        self._in_place = False
        if not self._swapped.release(self._held) and self._swapped.removable:
            self._swapped.detach()

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        where = "in" if self._in_place else "removed from"
        return f"<{self.label}, {where} {type(self._model).__name__}>"


def attention(
    model: torch.nn.Module,
    attn: str = "plsh",
    *,
    masks: int = 16,
    context: int | None = None,
    seed: int = 0,
    draw: int = 0,
    kernel: str = "auto",
    check: bool = True,
    **options: object,
) -> Replacement:
    """Replace the attention of every layer of a loaded MPT, BLOOM or Falcon with ALiBi.

    A `with` statement restores the model at the end of its block; without one the replacement lasts
    until `remove` is called. The model may be wrapped, as PEFT and torch.compile do; its weights,
    names and configuration do not change.

    Args:
        model: the model, or a module that contains it.
        attn: attention method: alibi, plsh, window, sliding, allocated, topk or stock.
        masks: masks of each layer and head; also the number whose cost a window matches.
        context: tokens at which a window without a cutoff costs as much as the masks; otherwise
            not needed.
        seed, draw: key of the masks; the same masks as in `harness.run` with this seed.
        kernel: implementation: auto, sdpa, flex, triton or exact.
        check: whether to compare a model's first replacement with the float64 oracle, with and
            without KV cache, by forwards of a few tokens. Switch it off for weights that are
            sharded or on other devices.
        options: options of the method, as on the command line without "attn.": sampler, weights,
            match, cutoff, stagger, tokens, allocation, keys, sinks, near, evict, align, share.

    Returns:
        The replacement, a context manager.

    Raises:
        UserError: for an option that the command line would refuse, or a model without ALiBi.
    """
    _check_draw(draw)
    method_options = {f"attn.{name}": value for name, value in options.items()}
    sizes = {"masks": masks, "context": context or ANY_CONTEXT, "seed": seed}
    words = option_words({"attn": attn, "kernel": kernel, **sizes, **method_options})
    config = to_run_config(compose_config(words))
    config.check()
    kind = ATTENTIONS.get(config.attn.name)
    if context is None and kind is not None and kind.matched(config.attn):
        raise UserError(
            f"attn={kind.name} needs a length, or a context at which it costs as much as the masks: give tokens= to a "
            "sliding window, cutoff= to another, or context=."
        )
    transformer = _transformer(model)
    spec = _spec(transformer)
    method = choose_attention(config.attn, masks=config.masks, context=config.context, model=spec)
    if kernel in COMPILED_KERNELS:
        choose("dtype", spec.dtype, DTYPES)
    if not method.native:
        refuse_kernel(kernel, method, spec, transformer.device)
    cell = Cell(spec, method, kernel, config.context, config.seed, 1, config.data_seed)
    swapped = SwappedAttention.find(transformer)
    if swapped is None:
        swapped = SwappedAttention(transformer, spec.family, spec.slopes, kernel=kernel, removable=True)
    try:
        if check and not method.native and transformer not in _checked:
            _self_check(transformer, swapped, kernel)
        return Replacement(transformer, swapped, cell, draw)
    except BaseException:
        if swapped.removable and not swapped.holds_weights:
            swapped.detach()
        raise


def _transformer(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside its wrappers. Raises UserError if there is none with ALiBi."""
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{type(model).__name__} is not a model: of a pipeline, give pipeline.model.")
    transformers = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    for module in transformers:
        if module.config.model_type in FAMILIES:
            return module
    if not transformers:
        raise UserError(f"{type(model).__name__} holds no model of transformers.")
    model_family(transformers[0].config.model_type)  # raises an error that lists the families
    raise AssertionError


def _spec(model: PreTrainedModel) -> ModelSpec:
    """Specification of a loaded model, as far as options of an attention depend on it."""
    # quantized weights are computed by their own modules, which attention does not touch
    raw = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    name = model.config.name_or_path or type(model).__name__
    dtype = dtype_name(model.dtype)
    return ModelSpec(name, None, None, None, dtype, parse_architecture(raw), identity={})


def _self_check(model: PreTrainedModel, swapped: SwappedAttention, kernel: str) -> None:
    """Run the check of every load, with training modules in evaluation mode meanwhile."""
    training = [module for module in model.modules() if module.training]
    check_hold = swapped.hold(swapped.exact, kernel)
    model.eval()
    try:
        selfcheck.check_logits(model, swapped, source=model.config.name_or_path or type(model).__name__)
    finally:
        for module in training:
            module.training = True
        swapped.release(check_hold)
        CHOSEN.clear()  # kernels chosen during the check are not the user's
    _checked.add(model)


def _check_draw(draw: int) -> None:
    if not 0 <= draw < 2**63:
        raise UserError(f"draw must be at least 0 and below 2**63, not {draw}.")
