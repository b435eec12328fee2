"""Where the queries and keys of a call lie: padding, offset and left-out tokens as one number for
each sequence.

Places are two or three rows of a whole number for each sequence: the slots of padding that its keys
begin with, the token of its first query, negative in padding, and, where there is a gap, the tokens
that its keys leave out after the sinks. On the host they are tuples, which are checked and may be
kept; on a device, or where a graph is traced, a tensor (2 or 3, batch), at whose numbers nothing
looks.
"""

import torch

Places = tuple[tuple[int, ...], ...] | torch.Tensor


def places_of(
    q: torch.Tensor,
    keys: int,
    padding: torch.Tensor | list[int] | None,
    q_offset: int | torch.Tensor | list[int] | None,
    gap: int | torch.Tensor | list[int],
) -> tuple[Places, int | None]:
    """The places of a call from the arguments of `kernels.attend`, and the largest gap, None where
    nobody knows."""
    batch, queries = q.shape[0], q.shape[2]
    gaps = (gap,) * batch if isinstance(gap, int) else _row("gap", gap, batch)
    pads = (0,) * batch if padding is None else _row("padding", padding, batch, keys)
    known = isinstance(gaps, tuple)
    if known and any(gap < 0 for gap in gaps):  # torch.compile follows no min of symbolic numbers
        raise ValueError(f"gap must be at least 0, not {list(gaps)}.")
    gapped = not known or any(gaps)
    if q_offset is not None:
        starts = (q_offset,) * batch if isinstance(q_offset, int) else _row("q_offset", q_offset, batch)
    elif known and isinstance(pads, tuple):
        starts = tuple(keys - queries - pad + left_out for pad, left_out in zip(pads, gaps, strict=True))
    else:
        device = pads.device if isinstance(pads, torch.Tensor) else gaps.device
        starts = keys - queries - _tensor(pads, device) + _tensor(gaps, device)
    rows = (pads, starts, gaps) if gapped else (pads, starts)
    tensors = [row for row in rows if isinstance(row, torch.Tensor)]
    if tensors or tracing():
        on_device = [row.device for row in tensors if row.device.type != "cpu"]
        device = on_device[0] if on_device else torch.device("cpu")
        rows = torch.stack([_tensor(row, device) for row in rows])
    return rows, max(gaps) if known else None


def held_places(places: torch.Tensor, batch: int) -> tuple[Places, int | None]:
    """`places_of` where they are given as such."""
    if places.ndim != 2 or len(places) not in (2, 3) or places.shape[1] != batch or not _whole(places):
        raise ValueError(
            f"places must be whole numbers (2, {batch}) or (3, {batch}), padding, tokens of the first queries and gaps "
            f"of the sequences, not {tuple(places.shape)} {places.dtype}."
        )
    if places.device.type != "cpu" or tracing():
        return places, None if len(places) == 3 else 0
    rows = tuple(map(tuple, places.tolist()))
    return rows, max(rows[2]) if len(rows) == 3 else 0


def check_places(places: Places, queries: int, keys: int, sinks: int) -> tuple[tuple[int, ...], ...]:
    """Pads, starts and gaps on the host. Raises ValueError where a query would not lie among the
    keys, `sinks` of which come before a gap."""
    rows = places if isinstance(places, tuple) else tuple(map(tuple, places.tolist()))
    pads, starts = rows[:2]
    gaps = rows[2] if len(rows) == 3 else (0,) * len(pads)
    for pad, start, left_out in zip(pads, starts, gaps, strict=True):
        if left_out < 0:
            raise ValueError(f"gap must be at least 0, not {list(gaps)}.")
        if not 0 <= pad <= keys:
            raise ValueError(
                f"padding must hold one count in 0 .. {keys} for each of the {len(pads)} sequences, not {list(pads)}."
            )
        slot = start + pad - left_out  # of q's first row, which is what must lie among the keys
        if slot < 0 or slot + queries > keys:
            raise ValueError(
                f"Queries at tokens {start} .. {start + queries - 1} do not lie among the {keys - pad} keys: "
                "pass k and v of the whole sequence, or the q_offset that belongs to them."
            )
        if left_out and start < sinks + left_out:
            raise ValueError(
                f"The query at token {start} comes before token {sinks + left_out}, the first that a gap of {left_out} "
                f"after {sinks} sinks keeps: pass a smaller gap, or later queries."
            )
    return pads, starts, gaps


def tracing() -> bool:
    """Whether a graph is traced, by torch.compile or under a mode of torch that looks at every
    operator."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _row(name: str, numbers, batch: int, keys: int | None = None) -> tuple[int, ...] | torch.Tensor:
    """Whole numbers, one for each sequence; one may stand for all where they are not counts of so
    many `keys`."""
    if not isinstance(numbers, torch.Tensor):
        numbers = torch.as_tensor(numbers)
    if not _whole(numbers):
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


def _whole(numbers: torch.Tensor) -> bool:
    return not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)


def _tensor(row: tuple[int, ...] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A row on a device; equal numbers are filled in there, since a copy from the host would end a
    graph's capture."""
    if isinstance(row, torch.Tensor):
        return row.to(device)
    if not torch.compiler.is_compiling() and len(set(row)) == 1:
        return torch.full((len(row),), row[0], dtype=torch.long, device=device)
    return torch.tensor(list(row), device=device)
