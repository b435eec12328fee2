"""Methods as a reader sees them: a name, and a colour, marker and line that are the same on every plot of every page.

Colours are Okabe and Ito's, which readers with and without colour blindness tell apart; page.css holds their values for
a light and a dark page under the method's key.
"""

from dataclasses import dataclass

from harness.reader import Record


@dataclass(frozen=True)
class Method:
    key: str
    name: str
    symbol: str
    dash: str = "solid"


EXACT = Method("exact", "exact ALiBi", "diamond")
STOCK = Method("stock", "stock (transformers' own)", "x")
WINDOW_FUSED = Method("window-fused", "window of equal fused pairs", "square")
WINDOW_PASSES = Method("window-passes", "window of equal pairs in passes", "triangle-up")
WINDOW = Method("window", "window", "square-open")

_SYMBOL = {"gamma": "circle", "systematic": "triangle-down", "fixed": "cross"}
_DASH = {"gamma": "solid", "systematic": "dash", "fixed": "dot"}


def method_of(record: Record) -> Method:
    """The method of a record, all its numbers of masks and cutoffs together."""
    attention = record.attention
    name, sampler, weights = attention["name"], attention.get("sampler"), attention.get("weights")
    if name == "alibi":
        return EXACT
    if name == "stock":
        return STOCK
    if name == "window":
        return WINDOW
    if name == "plsh":
        key = f"plsh-{weights}" if weights in ("count", "rb", "exact") else "plsh"
        return Method(key, f"PLSH {sampler} {weights}", _SYMBOL.get(sampler, "circle"), _DASH.get(sampler, "solid"))
    return Method("other", str(name), "star")
