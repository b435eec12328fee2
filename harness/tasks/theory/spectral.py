"""Norms of a head's weight matrix W and of its error W - L, without n x n memory.

Both matrices are applied to vectors: L = exp(-m |i - j|) by a first-order recursion, W by the pieces
that the kernels read. Spectral norms are the largest singular values by ARPACK.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kernels import Alibi, Weights

ROWS = 512  # rows of a piece
MAX_KEPT = 1 << 27  # numbers of W that are kept between products: 512 MB
TOLERANCE = 1e-4  # relative, of a spectral norm


@dataclass(frozen=True)
class Norms:
    """Norms of one head.

    Attributes:
        exact: ||L||_2.
        error: ||W - L||_2.
        largest: max |W - L|.
    """

    exact: float
    error: float
    largest: float


class Head:
    """The weight matrix of one head on n tokens.

    Args:
        weights: of a layer.
        head: the head.
        tokens: n.
        causal: whether rows see no later columns.
    """

    def __init__(self, weights: Weights, head: int, tokens: int, *, causal: bool) -> None:
        self.weights, self.tokens, self.causal = weights, tokens, causal
        self.sinks = min(weights.sinks, tokens)
        self.slope = float(weights.slopes[head])
        self._head = torch.tensor([head])

    def norms(self) -> Norms:
        """Return the norms of the head."""
        exact = exact_norm(self.slope, self.tokens, self.causal)
        if isinstance(self.weights, Alibi):  # whose pieces would be all of n x n
            return Norms(exact, 0.0, 0.0)
        error = _norm(self.tokens, self.apply_error)
        return Norms(exact, error, self._largest())

    def apply_error(self, x: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        """Return (W - L) x, (n,) float64; (W - L)^T x if `transposed`. Sinks have exact weights, so
        that their columns are zero."""
        x = np.array(x, dtype=np.float64).reshape(-1)
        if not transposed:
            x[: self.sinks] = 0
        result = -apply_exact(self.slope, x, causal=self.causal, transposed=transposed)
        vector = torch.from_numpy(x.astype(np.float32))
        for rows, columns, piece in self.pieces():
            if transposed:
                result[columns] += (piece.T @ vector[rows]).numpy()
            else:
                result[rows] += (piece @ vector[columns]).numpy()
        if transposed:
            result[: self.sinks] = 0
        return result

    def pieces(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Yield pieces that cover W beyond the sinks: rows, columns, weights (rows, columns)
        float32."""
        yield from self._kept if self._kept is not None else self._made()

    @functools.cached_property
    def _kept(self) -> list[tuple[slice, slice, torch.Tensor]] | None:
        kept, total = [], 0
        for piece in self._made():
            kept.append(piece)
            total += piece[2].numel()
            if total > MAX_KEPT:
                return None
        return kept

    def _made(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        for begin in range(0, self.tokens, ROWS):
            rows = torch.arange(begin, min(begin + ROWS, self.tokens))[None]
            low = int(self.weights.reach(self._head, rows[:, :1])[0])
            high = int(rows[0, -1])
            if not self.causal:
                high = min(int(self.weights.reach(self._head, rows[:, -1:])[1]), self.tokens - 1)
            if low <= high:
                piece = self.weights.log_piece(self._head, rows, torch.tensor([low]), high - low + 1, self.causal)
                yield slice(begin, begin + rows.shape[1]), slice(low, high + 1), piece[0].exp()

    def _largest(self) -> float:
        largest = 0.0
        for rows, columns, piece in self.pieces():
            row, column = (torch.arange(s.start, s.stop, dtype=torch.float64) for s in (rows, columns))
            signed = row[:, None] - column
            exact = torch.exp(-self.slope * signed.abs())
            if self.causal:
                exact.masked_fill_(signed < 0, 0)
            exact[:, column < self.sinks] = 0
            largest = max(largest, float((piece - exact).abs().max()))
            # the nearest columns that no row of the piece reaches
            if columns.start > self.sinks:
                largest = max(largest, float(np.exp(-self.slope * (rows.start - columns.start + 1))))
            if not self.causal and columns.stop < self.tokens:
                largest = max(largest, float(np.exp(-self.slope * (columns.stop - rows.stop + 1))))
        return largest


def log_weights(weights: Weights, head: int, rows: torch.Tensor, keys: int, *, causal: bool = True) -> torch.Tensor:
    """Return log w (rows, keys) of consecutive rows of one head against the first keys, sinks
    included.

    Args:
        weights: of a layer.
        head: the head.
        rows: (rows,), consecutive.
        keys: number of keys.
        causal: whether a row sees earlier columns only.
    """
    one, rows = torch.tensor([head]), rows[None]
    log_w = weights.log_piece(one, rows, torch.zeros_like(rows[0, :1]), keys, causal)[0]
    if sinks := min(weights.sinks, keys):
        log_w[:, :sinks] = weights.log_sinks(one, rows, sinks, causal)[0]
    return log_w


@functools.lru_cache(maxsize=1024)
def exact_norm(slope: float, tokens: int, causal: bool) -> float:
    """Return ||L||_2 of a head; kept, because it is equal in all draws.

    Args:
        slope: of the head.
        tokens: n.
        causal: whether rows see no later columns.
    """
    return _norm(tokens, functools.partial(apply_exact, slope, causal=causal))


def apply_exact(slope: float, x: np.ndarray, *, causal: bool, transposed: bool = False) -> np.ndarray:
    """Return L x, (n,) float64; L^T x if `transposed`.

    Args:
        slope: of the head.
        x: (n,).
        causal: whether rows see no later columns.
        transposed: whether to apply the transpose.
    """
    from scipy.signal import lfilter  # its import would slow the start of every run

    x = np.asarray(x, dtype=np.float64).reshape(-1)
    decay = np.exp(-slope)

    def earlier(v: np.ndarray) -> np.ndarray:
        return lfilter([1.0], [1.0, -decay], v)

    if not causal:
        return earlier(x) + earlier(x[::-1])[::-1] - x
    return earlier(x[::-1])[::-1] if transposed else earlier(x)


def _norm(tokens: int, apply: Callable) -> float:
    """Return the largest singular value of the operator that `apply(x, transposed=...)` applies."""
    from scipy.sparse.linalg import LinearOperator, svds  # as in `apply_exact`

    operator = LinearOperator(
        (tokens, tokens),
        matvec=functools.partial(apply, transposed=False),
        rmatvec=functools.partial(apply, transposed=True),
        dtype=np.dtype(np.float64),
    )
    start = np.random.default_rng(0).standard_normal(tokens)
    return float(svds(operator, k=1, tol=TOLERANCE, v0=start, return_singular_vectors=False)[0])
