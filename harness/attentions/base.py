"""What an attention method is to the harness: its options, its weights, its cost, what stands
beside it, its looks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from harness.common.errors import UserError

if TYPE_CHECKING:  # the models import torch, and reading records needs none
    from harness.models.spec import ModelSpec
    from harness.results.schema import CellDescription
    from kernels import Weights

FIRST = ("masks", "sampler", "weights", "cutoff")  # stand in every identity, null where a method has no such option
RUN_OPTIONS = ("masks",)  # options of a method that the command line sets without attn.


@dataclass(frozen=True)
class Style:
    """How plots draw a method. key: names its colours, `--c-KEY` in report/page.css; "other" is
    grey. symbol: Plotly's name of the marker. dash: Plotly's name of the line."""

    key: str
    name: str
    symbol: str
    dash: str = "solid"


class Option(NamedTuple):
    """Of the command line, attn.NAME. known: gives the words that it may hold, if it holds words of
    a list."""

    name: str
    type: Any
    default: Any
    known: Callable[[], Iterable[str]] | None


class Attention(ABC):
    """One method with its options: every subclass is a frozen dataclass of its own. A method that
    composes the weights of `kernels` is one file like those beside this one, one line in
    `harness.attentions.registry` and one file in conf/attn.

    A field with a default is part of a cell's identity only where its value differs: options that
    are added later leave the ids of earlier cells as they are.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    name: ClassVar[str]
    Options: ClassVar[type | None] = None  # dataclass of attn.*, where these are not the fields themselves
    native: ClassVar[bool] = False  # computed by the checkpoint's own code: `kernel` does not apply
    any_context: ClassVar[bool] = True  # the same options are the same method at every context
    beside_windows: ClassVar[bool] = False  # the windows of equal cost stand beside it, which it should beat
    sinks = 0  # first tokens that stay visible with exact weight; a field of methods that have them
    evict = False  # generation drops keys that nothing reaches any more; likewise

    @property
    def random(self) -> bool:
        """Whether cells have several draws."""
        return False

    @property
    @abstractmethod
    def label(self) -> str:
        """In tables, for people."""

    @property
    @abstractmethod
    def style(self) -> Style:
        """In plots; the same for all options that lie on one curve."""

    @abstractmethod
    def weights_of(self, model: "ModelSpec", *, seed: int, draw: int) -> "Sequence[Weights] | None":
        """Of every layer, in one draw; None where the checkpoint's own code decides."""

    @abstractmethod
    def pairs(self, model: "ModelSpec", context: int) -> dict[str, float]:
        """Visited pairs (key before query) of all heads over a causal context, expected over draws,
        by how they are counted: "fused", each pair once, and "passes", each mask by itself. What is
        not known is left out."""

    @classmethod
    def chosen(cls, options: Any, *, masks: int, context: int, model: "ModelSpec") -> "Attention":
        """From the command line: `options` has every attn.* of every method. Raises UserError for
        values that make no sense together."""
        cls.refuse_evict(options)
        given = {f.name: masks if f.name in RUN_OPTIONS else getattr(options, f.name) for f in fields(cls)}
        if absent := [f.name for f in fields(cls) if f.default is MISSING and given[f.name] is None]:
            raise UserError(f"attn={cls.name} needs a value of {' and '.join(f'attn.{name}' for name in absent)}.")
        return cls(**{name: value for name, value in given.items() if value is not None})

    @classmethod
    def refuse_evict(cls, options: Any) -> None:
        """UserError if keys should be dropped by a method that drops none."""
        if options.evict and "evict" not in {f.name for f in fields(cls)}:
            raise UserError(
                f"attn.evict=true drops keys that nothing reaches any more, and attn={cls.name} reaches all."
            )

    @classmethod
    def options(cls) -> list[Option]:
        """What can be set as attn.NAME; null stands for the method's default."""
        declared = [f for f in fields(cls.Options or cls) if f.name not in RUN_OPTIONS]
        return [
            Option(f.name, f.type | None, None, f.metadata.get("known"))  # type: ignore[operator]
            if f.default is MISSING
            else Option(f.name, f.type, f.default, f.metadata.get("known"))
            for f in declared
        ]

    @property
    def identity(self) -> dict:
        always = {*FIRST, *(f.name for f in fields(self) if f.default is MISSING)}
        own = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        shown = {name: value for name, value, default in own if name in always or value != default}
        return {"name": self.name, **dict.fromkeys(FIRST), **shown}

    @property
    def masks_drawn(self) -> int:
        """How many masks a row of a draw has; 1 without any. For the estimate of memory."""
        return 1

    @property
    def masks_counted(self) -> int:
        """How many masks a kernel must count pair by pair, 0 where a formula gives the weight."""
        return 0

    def facts(self, model: "ModelSpec") -> dict:
        """What the record of a cell says of the method beside its identity, as JSON."""
        return {}

    def remarks(self, cell: "CellDescription") -> list[str]:
        """What a table must say beside the label, from the record of the cell (`facts` in its
        `more`)."""
        return []

    @property
    def variant(self) -> list[str]:
        """Words that tell curves of one style apart."""
        return [f"{self.sinks} sinks"] * bool(self.sinks) + ["evicting"] * self.evict

    @property
    def kept(self) -> str:
        """What a label says of sinks and eviction."""
        sinks = f" +{self.sinks} sink{'s' * (self.sinks > 1)}" if self.sinks else ""
        return sinks + ", evicting" * self.evict

    def costs_as_much_as(self, other: "Attention") -> bool:
        """Whether this is what stands beside `other` at equal cost, if it visits as many pairs."""
        return False


@dataclass(frozen=True)
class Unknown(Attention):
    """A method of a record that the registry lacks: it can be shown and not computed."""

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


def one_of(known: Callable[[], Iterable[str]]) -> Any:
    """A field of `Options` that holds one of these words, or null for the method's default."""
    return field(default=None, metadata={"known": known})
