"""Where the queries and keys of a call lie: padding, offset and left-out tokens as one number for each sequence."""

import torch


def places_of(
    q: torch.Tensor,
    keys: int,
    padding: torch.Tensor | None,
    q_offset: int | torch.Tensor | None,
    gap: int | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Slots of padding and token of the first query, both (B,) int64, and the tokens left out after the sinks, as
    `kernels.attend` takes them. Looks at no number of a tensor but `gap`, so that torch.compile can follow."""
    batch = len(q)
    gaps = _each("gap", [gap] if isinstance(gap, int) else _whole("gap", gap).reshape(-1).tolist(), batch)
    pads = torch.zeros(batch, dtype=torch.long) if padding is None else _whole("padding", padding)
    if pads.shape != (batch,):
        raise ValueError(
            f"padding must hold one count in 0 .. {keys} for each of the {batch} sequences, not {tuple(pads.shape)}."
        )
    if q_offset is None:
        return pads, keys - q.shape[2] - pads + torch.tensor(gaps).to(pads.device), gaps
    if isinstance(q_offset, int):
        return pads, torch.full((batch,), q_offset), gaps
    starts = _whole("q_offset", q_offset).reshape(-1)
    return pads, starts.expand(batch) if len(starts) == 1 else _each("q_offset", starts, batch), gaps


def check_places(
    pads: torch.Tensor, starts: torch.Tensor, gaps: list[int], queries: int, keys: int, sinks: int
) -> tuple[list[int], list[int]]:
    """pads and starts (B,) as lists. Raises ValueError where a query would not lie among the keys, `sinks` of which
    come before a gap."""
    pads, starts = pads.tolist(), starts.tolist()
    if any(not 0 <= p <= keys for p in pads):
        raise ValueError(
            f"padding must hold one count in 0 .. {keys} for each of the {len(pads)} sequences, not {pads}."
        )
    for start, pad, left_out in zip(starts, pads, gaps, strict=True):
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
    return pads, starts


def _whole(name: str, numbers) -> torch.Tensor:
    """Numbers as int64."""
    numbers = torch.as_tensor(numbers)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, not {numbers.dtype}.")
    return numbers.long()


def _each(name: str, numbers, batch: int):
    """One number for each sequence."""
    if len(numbers) not in (1, batch):
        raise ValueError(f"{name} must be one number or one for each of the {batch} sequences, not {len(numbers)}.")
    return numbers * batch if len(numbers) < batch else numbers
