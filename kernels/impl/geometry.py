"""The geometry of a call: padding, first query and evicted tokens, one number for each sequence.

A `CallGeometry` is two or three rows of a whole number for each sequence: the number of leading
slots of padding among its keys, the token of its first query (negative in padding), and, if tokens
were evicted, how many (the gap after the sinks). On the host the rows are tuples, which are checked
and may serve as a key. On a device, or while a graph is traced, they are a tensor (2 or 3, batch)
whose numbers are never read.
"""

from collections.abc import Sequence

import torch

CallGeometry = tuple[tuple[int, ...], ...] | torch.Tensor
PerSequence = tuple[int, ...] | torch.Tensor  # (batch,)


def geometry_of_call(
    q: torch.Tensor,
    keys: int,
    padding: torch.Tensor | list[int] | None,
    q_offset: int | torch.Tensor | list[int] | None,
    gap: int | torch.Tensor | list[int],
) -> tuple[CallGeometry, int | None]:
    """Returns the geometry of a call, and the largest gap, None if the host does not know it.

    Args:
        q: (batch, heads, queries, head_dim).
        keys: number of slots of k.
        padding, q_offset, gap: as in `kernels.attend`.

    Raises:
        ValueError: for numbers of another type or shape, and for a gap below 0.
    """
    batch, queries = q.shape[0], q.shape[2]
    gaps = (gap,) * batch if isinstance(gap, int) else _per_sequence("gap", gap, batch)
    pads = (0,) * batch if padding is None else _per_sequence("padding", padding, batch, keys)
    if isinstance(gaps, tuple) and any(gap < 0 for gap in gaps):  # torch.compile follows no min of symbolic numbers
        raise ValueError(f"gap must be at least 0, not {list(gaps)}.")
    largest_gap = max(gaps) if isinstance(gaps, tuple) else None
    gapped = not isinstance(gaps, tuple) or any(gaps)
    starts: PerSequence
    if q_offset is not None:
        starts = (q_offset,) * batch if isinstance(q_offset, int) else _per_sequence("q_offset", q_offset, batch)
    elif isinstance(gaps, tuple) and isinstance(pads, tuple):
        starts = tuple(keys - queries - pad + gap for pad, gap in zip(pads, gaps, strict=True))
    else:
        tensor = pads if isinstance(pads, torch.Tensor) else gaps
        assert isinstance(tensor, torch.Tensor)
        starts = keys - queries - _as_tensor(pads, tensor.device) + _as_tensor(gaps, tensor.device)
    rows = (pads, starts, gaps) if gapped else (pads, starts)
    tensors = [row for row in rows if isinstance(row, torch.Tensor)]
    if tensors or tracing():
        on_device = [row.device for row in tensors if row.device.type != "cpu"]
        device = on_device[0] if on_device else torch.device("cpu")
        return torch.stack([_as_tensor(row, device) for row in rows]), largest_gap
    return tuple(row for row in rows if isinstance(row, tuple)), largest_gap


def geometry_of_tensor(places: torch.Tensor, batch: int) -> tuple[CallGeometry, int | None]:
    """Returns the geometry that `kernels.attend` got as the tensor `places`, and the largest gap,
    None if the host does not know it. Raises ValueError for another shape or type."""
    if places.ndim != 2 or len(places) not in (2, 3) or places.shape[1] != batch or not _is_whole(places):
        raise ValueError(
            f"places must be whole numbers (2, {batch}) or (3, {batch}), padding, tokens of the first queries and gaps "
            f"of the sequences, not {tuple(places.shape)} {places.dtype}."
        )
    if places.device.type != "cpu" or tracing():
        return places, None if len(places) == 3 else 0
    rows = host_geometry(places)
    return rows, max(rows[2]) if len(rows) == 3 else 0


def check_geometry(geometry: CallGeometry, queries: int, keys: int, sinks: int) -> tuple[tuple[int, ...], ...]:
    """Returns pads, starts and gaps on the host.

    Args:
        geometry: of the call.
        queries, keys: number of rows of q and k, padding included.
        sinks: number of keys before a gap.

    Raises:
        ValueError: if a query does not lie among the keys.
    """
    rows = host_geometry(geometry)
    pads, starts = rows[:2]
    gaps = rows[2] if len(rows) == 3 else (0,) * len(pads)
    for pad, start, gap in zip(pads, starts, gaps, strict=True):
        if gap < 0:
            raise ValueError(f"gap must be at least 0, not {list(gaps)}.")
        if not 0 <= pad <= keys:
            raise ValueError(
                f"padding must hold one count in 0 .. {keys} for each of the {len(pads)} sequences, not {list(pads)}."
            )
        slot = start + pad - gap  # of q's first row: it must lie among the keys
        if slot < 0 or slot + queries > keys:
            raise ValueError(
                f"Queries at tokens {start} .. {start + queries - 1} do not lie among the {keys - pad} keys: "
                "pass k and v of the whole sequence, or the q_offset that belongs to them."
            )
        if gap and start < sinks + gap:
            raise ValueError(
                f"The query at token {start} comes before token {sinks + gap}, the first that a gap of {gap} "
                f"after {sinks} sinks keeps: pass a smaller gap, or later queries."
            )
    return pads, starts, gaps


def host_geometry(geometry: CallGeometry) -> tuple[tuple[int, ...], ...]:
    """Returns the rows as tuples; waits for the device of a tensor."""
    return geometry if isinstance(geometry, tuple) else tuple(map(tuple, geometry.tolist()))


def tracing() -> bool:
    """Whether a graph is being traced, by torch.compile or under a dispatch mode of torch."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _per_sequence(name: str, values: torch.Tensor | Sequence[int], batch: int, keys: int | None = None) -> PerSequence:
    """Whole numbers, one for each sequence. Counts of so many `keys` must be (batch,); other
    numbers may be one for all sequences. Raises ValueError, with `name`, for another type or
    shape."""
    numbers = values if isinstance(values, torch.Tensor) else torch.as_tensor(values)
    if not _is_whole(numbers):
        raise ValueError(f"{name} must be whole numbers, not {numbers.dtype}.")
    if keys is None:
        numbers = numbers.reshape(-1)
        if len(numbers) not in (1, batch):
            raise ValueError(f"{name} must be one number or one for each of the {batch} sequences, not {len(numbers)}.")
    elif numbers.shape != (batch,):
        raise ValueError(
            f"{name} must hold one count in 0 .. {keys} for each of the {batch} sequences, not {tuple(numbers.shape)}."
        )
    numbers = numbers.expand(batch)
    return numbers.long() if numbers.device.type != "cpu" or tracing() else tuple(numbers.tolist())


def _is_whole(numbers: torch.Tensor) -> bool:
    return not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)


def _as_tensor(row: PerSequence, device: torch.device) -> torch.Tensor:
    """A row on a device. Equal numbers are filled in there, since a copy from the host would end
    the capture of a CUDA graph."""
    if isinstance(row, torch.Tensor):
        return row.to(device)
    if not torch.compiler.is_compiling() and len(set(row)) == 1:
        return torch.full((len(row),), row[0], dtype=torch.long, device=device)
    return torch.tensor(list(row), device=device)
