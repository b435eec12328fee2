"""Replace the attention of a model that is loaded already, for a `with` block or for good."""

from types import TracebackType
from weakref import WeakSet

import torch

from harness.attentions.registry import chosen
from harness.cell import Cell
from harness.common.errors import UserError, choose
from harness.common.preflight import refuse_foreign_kernels
from harness.experiment.compose import composed, words_of
from harness.experiment.plan import typed
from harness.experiment.refusals import refuse_kernel
from harness.models.families import FAMILIES, family_of
from harness.models.spec import DTYPES, ModelSpec, architecture_of

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import PreTrainedModel  # noqa: E402

from harness.models import selfcheck  # noqa: E402
from harness.models.cache import new_cache  # noqa: E402
from harness.models.swap import SwappedAttention  # noqa: E402
from kernels.auto import CHOSEN  # noqa: E402

ANY_CONTEXT = 2**31 - 1  # tokens, where nothing depends on how many there are
COMPILED = ("triton", "flex")  # kernels that take the types of DTYPES alone

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
        """As tables name it."""
        return self._cell.attention.label

    @property
    def random(self) -> bool:
        """Whether it has masks, which another draw changes."""
        return self._cell.attention.random

    def redraw(self, draw: int) -> None:
        """Use another draw of the masks. An attention without masks stays as it is."""
        _refuse_draw(draw)
        if not self._in_place:
            raise UserError("This attention was removed: replace it anew.")
        if self.random and draw != self.draw:
            self._swapped.change(self._held, self._cell.weights(draw))
        self.draw = draw

    def cache(self, tokens: int) -> dict:
        """Arguments of `generate` for an empty KV cache in buffers that are allocated once, for
        `tokens` tokens of each sequence, the generated ones included. With evict=True it drops the
        keys that nothing can reach any more."""
        cache = new_cache(self._model, tokens, evict=self._cell.attention.evict)
        return {**cache.argument, "prefill_chunk_size": cache.chunk}

    def remove(self) -> None:
        """Put the attention back that was there before; a second call does nothing."""
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

    In a `with` statement the model is as it was when the block ends; otherwise until `remove` of
    what is returned is called. The model may be wrapped, as PEFT and torch.compile do; its weights,
    names and configuration stay.

    Args:
        model: the model, or a module that holds it.
        attn: what is computed: alibi, plsh, window or stock.
        masks: masks of each layer and head, and what a window's cost is matched to.
        context: tokens at which a window without a cutoff costs as much as the masks; nothing else
            needs it.
        seed, draw: which masks; (seed, draw) are those of `harness.run` with the same seed.
        kernel: how it is computed: auto, sdpa, flex, triton or exact.
        check: hold the model's first replacement against the float64 oracle and the ways of its KV
            cache, by forwards of a few tokens. To be left out for weights that are on other devices
            or in shards.
        options: the attention's own, as on the command line without their "attn.": sampler,
            weights, match, cutoff, sinks, evict, align.

    Raises:
        UserError: for an option that the command line would refuse, or a model that has no ALiBi.
    """
    _refuse_draw(draw)
    own = {f"attn.{name}": value for name, value in options.items()}
    sizes = {"masks": masks, "context": context or ANY_CONTEXT, "seed": seed}
    config = typed(composed(words_of({"attn": attn, "kernel": kernel, **sizes, **own})))
    config.check()
    if config.attn.name == "window" and config.attn.cutoff is None and context is None:
        raise UserError(
            "A window has a cutoff, or costs as much as masks do at some context: give cutoff= or context=."
        )
    transformer = _transformer(model)
    spec = _spec(transformer)
    method = chosen(config.attn, masks=config.masks, context=config.context, model=spec)
    if kernel in COMPILED:
        choose("dtype", spec.dtype, DTYPES)
    if not method.native:
        refuse_kernel(kernel, method, spec, transformer.device)
    cell = Cell(spec, method, kernel, config.context, config.seed, 1, config.data_seed)
    swapped = SwappedAttention.of(transformer)
    if swapped is None:
        swapped = SwappedAttention(transformer, spec.family, spec.slopes, kernel=kernel, removable=True)
    try:
        if check and not method.native and transformer not in _checked:
            _check(transformer, swapped, kernel)
        return Replacement(transformer, swapped, cell, draw)
    except BaseException:
        if swapped.removable and not swapped.held:
            swapped.detach()
        raise


def _transformer(model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, within whatever wraps it."""
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"A model is wanted, and {type(model).__name__} is none: of a pipeline, give pipeline.model.")
    found = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    for module in found:
        if module.config.model_type in FAMILIES:
            return module
    if not found:
        raise UserError(f"{type(model).__name__} holds no model of transformers.")
    family_of(found[0].config.model_type)  # says which there are
    raise AssertionError


def _spec(model: PreTrainedModel) -> ModelSpec:
    """What the options of an attention depend on. Weights that are quantized are computed by their
    own modules."""
    raw = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    name = model.config.name_or_path or type(model).__name__
    dtype = str(model.dtype).removeprefix("torch.")
    return ModelSpec(name, None, None, None, dtype, architecture_of(raw), identity={})


def _check(model: PreTrainedModel, swapped: SwappedAttention, kernel: str) -> None:
    """The check of every load, with what is in training set to evaluation meanwhile."""
    training = [module for module in model.modules() if module.training]
    held = swapped.hold(swapped.exact, kernel)
    model.eval()
    try:
        selfcheck.check(model, swapped, source=model.config.name_or_path or type(model).__name__)
    finally:
        for module in training:
            module.training = True
        swapped.release(held)
        CHOSEN.clear()  # what the check chose is nobody's choice
    _checked.add(model)


def _refuse_draw(draw: int) -> None:
    if not 0 <= draw < 2**63:
        raise UserError(f"draw must be at least 0 and below 2**63, not {draw}.")
