"""The interface of an attention method: options, weights, cost, references and appearance."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from harness.common.errors import UserError

if TYPE_CHECKING:  # the models import torch, which readers of records do not need
    from harness.models.spec import ModelSpec
    from harness.results.schema import CellDescription
    from kernels import Weights

# keys of every identity, null for methods without such an option
IDENTITY_KEYS = ("masks", "sampler", "weights", "cutoff")
Near = int | str  # tokens, or a word of `near_tokens`
TILE = 64  # tokens: the side of the tiles that fused kernels compute whole
RUN_OPTIONS = ("masks",)  # options of a method that the command line sets without attn.


@dataclass(frozen=True)
class Style:
    """How plots draw a method.

    key: name of its colours, `--c-KEY` in report/page.css; "other" is grey.
    name: the method's name in legends.
    symbol: Plotly's name of the marker.
    dash: Plotly's name of the line.
    """

    key: str
    name: str
    symbol: str
    dash: str = "solid"


class Option(NamedTuple):
    """An option attn.NAME of the command line.

    known: returns the valid words of an option that takes one of several words, else None.
    """

    name: str
    type: Any
    default: Any
    known: Callable[[], Iterable[str]] | None


class Attention(ABC):
    """A method with its options; every subclass is a frozen dataclass of its own options.

    A method that composes weights of `kernels` is one file in this folder, one line in
    `harness.attentions.registry` and one file in conf/attn.

    A field with a default is part of a cell's identity only if its value differs from the default.
    New options therefore do not change the ids of earlier cells.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    name: ClassVar[str]
    Options: ClassVar[type | None] = None  # dataclass of attn.*, if these differ from the fields
    # computed by the checkpoint's own code, so that `kernel` does not apply
    native: ClassVar[bool] = False
    # a row's keys depend on its scores: no weights can be measured without a model, no kernel is fused
    by_score: ClassVar[bool] = False
    any_context: ClassVar[bool] = True  # equal options mean the same method at every context
    beside_windows: ClassVar[bool] = False  # tables compare it with the windows of equal cost
    sinks = 0  # first tokens that stay visible with exact weight; a field where supported
    near = 0  # nearest keys, the row's own included, that have the exact weight; a field where supported
    evict = False  # generation drops keys out of reach; a field where supported
    fitted_text: str | None = None  # hash of the text that its options were fitted to, if any
    share = "none"  # which masks of a draw are the same; a field where supported

    @property
    def random(self) -> bool:
        """Whether cells have several draws."""
        return False

    @property
    @abstractmethod
    def label(self) -> str:
        """The name in tables."""

    @property
    @abstractmethod
    def style(self) -> Style:
        """Appearance in plots, equal for all options that lie on one curve."""

    @abstractmethod
    def weights_of(self, model: "ModelSpec", *, seed: int, draw: int) -> "Sequence[Weights] | None":
        """Return the weights of every layer in one draw; None for the checkpoint's own code.

        Args:
            model: the model, for its slopes and number of layers.
            seed: seed of the draws; not read without random masks, like `draw`.
            draw: number of the draw, from 0 on.

        Raises:
            UserError: for a method that the registry lacks.
        """

    @abstractmethod
    def pairs(self, model: "ModelSpec", context: int) -> dict[str, float]:
        """Return the visited pairs of all heads over a causal context, expected over draws.

        A pair is a key before its query. The keys of the result are the ways to count: "fused"
        counts each pair once, "passes" once for every mask that covers it. Unknown counts are left
        out.
        """

    @classmethod
    def from_options(cls, options: Any, *, masks: int, context: int, model: "ModelSpec") -> "Attention":
        """Return the method that the command line describes.

        Args:
            options: every attn.* of every method.
            masks: the option masks.
            context: the option context.
            model: the model.

        Raises:
            UserError: for values that are missing, out of range or make no sense together.
        """
        cls.refuse_evict(options)
        values = {f.name: masks if f.name in RUN_OPTIONS else getattr(options, f.name) for f in fields(cls)}
        if absent := [f.name for f in fields(cls) if f.default is MISSING and values[f.name] is None]:
            raise UserError(f"attn={cls.name} needs a value of {' and '.join(f'attn.{name}' for name in absent)}.")
        return cls(**{name: value for name, value in values.items() if value is not None})

    @classmethod
    def matched(cls, options: Any) -> bool:
        """Return whether these attn.* leave an option of the method to the context."""
        return False

    @classmethod
    def refuse_evict(cls, options: Any) -> None:
        """Raise UserError for attn.evict=true with a method that cannot evict."""
        if options.evict and "evict" not in {f.name for f in fields(cls)}:
            raise UserError(
                f"attn.evict=true drops keys that nothing reaches any more, and attn={cls.name} reaches all, or does "
                "not have that option."
            )

    @classmethod
    def options(cls) -> list[Option]:
        """Return the options attn.NAME of the method; null stands for its default."""
        declared = [f for f in fields(cls.Options or cls) if f.name not in RUN_OPTIONS]
        return [
            Option(f.name, f.type | None, None, f.metadata.get("known"))  # type: ignore[operator]
            if f.default is MISSING
            else Option(f.name, f.type, f.default, f.metadata.get("known"))
            for f in declared
        ]

    @functools.cached_property  # one object stands for thousands of cells of a sweep
    def identity(self) -> dict:
        """The part of a cell's identity that describes the method."""
        always = {*IDENTITY_KEYS, *(f.name for f in fields(self) if f.default is MISSING)}
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        included = {f.name: values[f.name] for f in fields(self) if f.name in always or values[f.name] != f.default}
        return {"name": self.name, **dict.fromkeys(IDENTITY_KEYS), **included}

    @property
    def masks_drawn(self) -> int:
        """Number of masks of each layer and head for the estimate of memory; 1 without masks."""
        return 1

    @property
    def masks_counted(self) -> int:
        """Number of masks that a kernel counts for each pair; 0 if a formula gives the weight."""
        return 0

    def facts(self, model: "ModelSpec") -> dict:
        """Return what the record of a cell holds of the method besides its identity, as JSON."""
        return {}

    def remarks(self, cell: "CellDescription") -> list[str]:
        """Return remarks for tables from the record of a cell, `facts` in its `more`."""
        return []

    @property
    def variant(self) -> list[str]:
        """Words that distinguish curves of one style."""
        exact = [f"{self.sinks} sinks"] * bool(self.sinks) + [f"near {self.near}"] * bool(self.near)
        return exact + ["evicting"] * self.evict

    @property
    def label_suffix(self) -> str:
        """The part of a label that describes sinks, near field and eviction."""
        sinks = f" +{self.sinks} sink{'s' * (self.sinks > 1)}" if self.sinks else ""
        return sinks + f" +{self.near} near" * bool(self.near) + ", evicting" * self.evict

    def costs_as_much_as(self, other: "Attention", *, pairs: float, wanted: float, context: int) -> bool:
        """Return whether this is the window of equal cost of another method.

        Args:
            other: the method.
            pairs: visited pairs per row of this method.
            wanted: visited pairs per row that it should have.
            context: tokens.
        """
        return False


@dataclass(frozen=True)
class UnknownAttention(Attention):
    """A recorded method that the registry lacks: it can be shown, but not computed."""

    name: str  # type: ignore[misc]

    @property
    def label(self) -> str:
        return str(self.name)

    @property
    def style(self) -> Style:
        return Style("other", str(self.name), "star")

    def weights_of(self, model, *, seed, draw):
        raise UserError(f"There is no attention method {self.name!r} here: this code did not make its record.")

    def pairs(self, model, context):
        return {}


def near_tokens(near: Near) -> int:
    """Return the tokens of attn.near.

    near: a number of at least 0, or "tile", the side of a tile of the fused kernels, within which a
        near field costs no time.

    Raises:
        UserError: for anything else.
    """
    tokens = TILE if near == "tile" else near
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise UserError(f"attn.near must be at least 0 tokens, or tile for {TILE}, not {near}.")
    return tokens


def word_option(known: Callable[[], Iterable[str]]) -> Any:
    """Return a field of `Options` for one of the known words, or null for the method's default."""
    return field(default=None, metadata={"known": known})
