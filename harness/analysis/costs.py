"""What a cell costs: visited pairs, the time of a prefill, bytes of the KV cache. Times are read from
the records of task=throughput of the same model, context and method."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from harness.analysis.reader import Record
from harness.attentions.base import Attention
from harness.attentions.registry import EXACT

TIMING = "throughput"


@dataclass(frozen=True)
class Cost:
    """None where it is unknown.

    Attributes:
        pairs: visited pairs per row.
        ms: median time of a prefill.
        time: the same as a share of exact ALiBi's, timed by turns with it.
        kv_bytes: bytes allocated for the KV cache of one sequence.
        evicting: whether these are the bytes of a cache that drops keys out of reach.
    """

    pairs: float | None = None
    ms: float | None = None
    time: float | None = None
    kv_bytes: float | None = None
    evicting: bool = False


class Costs:
    """The costs of a store's cells.

    Args:
        timed: the store's timings, in order of their start.
    """

    def __init__(self, timed: Iterable[Record]) -> None:
        self._times: dict[tuple, Record] = {}
        self._bytes: dict[tuple, Record] = {}
        devices = []
        for r in timed:  # a later record replaces an earlier one
            if f"{TIMING}/prefill_ms" in r.metrics:
                self._times[_key(r)] = r
                devices.append(r.options.get("device") or r.environment.device or "")
            key = _key(r)
            if r.method.evict or not (key in self._bytes and self._bytes[key].method.evict):
                self._bytes[key] = r
        self.device = devices[-1] if devices else ""

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Costs":
        """Return the costs by the timings among these records that have the machine of the newest,
        and its options among those of their model: times of two machines, of other numbers of
        threads or of other batches cannot be compared."""
        timed = sorted((r for r in records if r.task == TIMING and r.metrics), key=lambda r: r.start)
        newest = {str(r.identity.model): _setting(r) for r in timed}
        device = timed[-1].options.get("device") if timed else None
        return cls(
            r for r in timed if (device, *newest[str(r.identity.model)]) == (r.options.get("device"), *_setting(r))
        )

    def of_record(self, record: Record) -> Cost:
        """Return the cost of a record's cell."""
        timing, cache = self._times.get(_key(record)), self._bytes.get(_key(record))
        metrics = timing.metrics if timing else {}
        ms, speedup = (metrics.get(f"{TIMING}/prefill_{name}") for name in ("ms", "speedup"))
        share = 1 / speedup.value if speedup and speedup.value > 0 else None
        if record.method == EXACT and self.device:
            share = 1.0
        held = cache.metrics.get(f"{TIMING}/kv_allocated_bytes") if cache else None
        return Cost(
            pairs=record.pairs.get("fused"),
            ms=float(ms.value) if ms else None,
            time=share,
            kv_bytes=float(held.value) / int(cache.asked.get("batch", 1)) if cache and held else None,
            evicting=bool(cache and held and cache.method.evict),
        )

    def on(self, axis: str, record: Record) -> float | None:
        """Return the cost of a record on an axis, "pairs" or "time"; None if it is unknown."""
        return getattr(self.of_record(record), axis)


def _setting(record: Record) -> tuple:
    """What times of one model and machine must share to be compared."""
    return record.options.get("threads"), str(sorted(record.asked.items()))


def _key(record: Record) -> tuple:
    """What a timing and a record of samples share. The masks of a timing are those of one draw,
    whatever the draws of the other record."""
    identity = record.identity
    method = _without_eviction(record.method)
    return str(identity.model), identity.dtype, identity.kernel, identity.context, method


def _without_eviction(method: Attention) -> Attention:
    known = {f.name for f in fields(method)}
    return replace(method, evict=False) if "evict" in known and method.evict else method
