"""The inputs of one call, its results by the oracle, and the window with the same error as PLSH."""

import torch

from kernels.attend import attend
from kernels.bench.plan import HeadSet
from kernels.methods.weights import Alibi, Weights

SAMPLED_ROWS = 8  # consecutive rows checked at each quarter of the context


class Problem:
    """Standard normal q (1, heads, queries, dim), k and v (1, heads, tokens, dim), with the queries
    at the last tokens. The oracle computes the truth in float64 at sampled rows: the output, or
    (`backward`) the gradients of q at these rows and of k and v, with a gradient of the output that
    is zero in all other rows."""

    def __init__(
        self,
        heads: HeadSet,
        tokens: int,
        queries: int,
        *,
        backward: bool,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        generator = torch.Generator(device).manual_seed(0)
        self.heads, self.tokens, self.queries, self.backward = heads, tokens, queries, backward
        self.device, self.dtype = torch.device(device), dtype
        lengths = (queries, tokens, tokens, queries if backward else 0)
        self.q, self.k, self.v, self.grad_out = (
            torch.randn(1, heads.heads, n, heads.dim, generator=generator, device=device).to(dtype) for n in lengths
        )
        ends = [queries * quarter // 4 for quarter in (1, 2, 3, 4)] if queries == tokens else [queries]
        self.pieces = [(max(0, end - SAMPLED_ROWS) if queries == tokens else 0, end) for end in ends]
        self.rows = torch.cat([torch.arange(*piece, device=self.device) for piece in self.pieces])
        self.sampled_grad_out = torch.zeros_like(self.grad_out)
        if backward:
            self.sampled_grad_out[:, :, self.rows] = self.grad_out[:, :, self.rows]
        self.exact = Alibi(heads.slopes)
        self._exact_truth: list[torch.Tensor] | None = None
        self._curve: tuple[torch.Tensor, float] | None = None

    @property
    def offset(self) -> int:
        """Token of the first query."""
        return self.tokens - self.queries

    def truth(self, weights: Weights) -> list[torch.Tensor]:
        """The results of a call under `weights`: [output at the rows], or the gradients [of q at
        the rows, of k, of v]."""
        if weights is not self.exact:
            return self._gradients(weights) if self.backward else [self.output(weights)]
        if self._exact_truth is None:
            self._exact_truth = self._gradients(weights) if self.backward else [self.output(weights)]
        return self._exact_truth

    def output(self, weights: Weights) -> torch.Tensor:
        """The sampled rows by kernel `exact` in float64: (1, heads, rows, dim)."""
        return torch.cat([self._piece(piece, weights, *self._inputs(piece)) for piece in self.pieces], dim=2)

    def _inputs(self, piece: tuple[int, int]) -> list[torch.Tensor]:
        begin, end = piece
        keys = self.offset + end
        return [self.q[:, :, begin:end].double(), self.k[:, :, :keys].double(), self.v[:, :, :keys].double()]

    def _piece(self, piece: tuple[int, int], weights: Weights, q, k, v) -> torch.Tensor:
        return attend(q, k, v, weights, kernel="exact", q_offset=self.offset + piece[0])

    def _gradients(self, weights: Weights) -> list[torch.Tensor]:
        of_rows, of_keys = [], [torch.zeros_like(self.k, dtype=torch.float64) for _ in range(2)]
        with torch.enable_grad():
            for piece in self.pieces:
                inputs = [x.requires_grad_() for x in self._inputs(piece)]
                out = self._piece(piece, weights, *inputs)
                dq, *rest = torch.autograd.grad(out, inputs, self.grad_out[:, :, slice(*piece)].double())
                of_rows.append(dq)
                for total, part in zip(of_keys, rest, strict=True):
                    total[:, :, : part.shape[2]] += part
        return [torch.cat(of_rows, dim=2), *of_keys]

    def output_error(self, weights: Weights) -> float:
        """Relative rms error of the output under `weights` against exact ALiBi at the sampled rows,
        both by the oracle."""
        exact = self.truth(self.exact)[0] if not self.backward else self.output(self.exact)
        return float((self.output(weights) - exact).norm() / exact.norm())

    def equal_error_cutoff(self, error: float, near: int = 0) -> float:
        """The smallest cutoff T, in units of 1/slope, of a window with this near field whose
        `output_error` is at most `error`: by bisection, exact at the sampled rows because the error
        of each head is known for every window length."""
        if self._curve is None:
            self._curve = self._window_errors()
        (curve, whole), slopes = self._curve, self.heads.slopes
        target = error**2 * whole

        def square(cutoff: float) -> float:
            farthest = torch.floor(cutoff / slopes).clamp(max(near - 1, 0), self.tokens - 1).long().to(curve.device)
            return float(curve.gather(1, farthest[:, None]).sum())

        low, high = 0.0, float(slopes.max()) * self.tokens
        if square(low) <= target:
            return low
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if square(middle) <= target else (middle, high)
        return high

    def _window_errors(self) -> tuple[torch.Tensor, float]:
        """Returns the squared error of each head's sampled rows under windows of 0, 1, ... tokens,
        (heads, tokens) float64, from running sums of exp(score) and exp(score) v outwards from the
        row; and the squared norm of the exact output."""
        errors = torch.zeros(self.heads.heads, self.tokens, dtype=torch.float64, device=self.device)
        whole = 0.0
        slopes, scale = self.heads.slopes.to(self.device), self.heads.dim**-0.5
        for row in self.rows.tolist():
            keys = self.offset + row + 1
            k, v = (x[0, :, :keys].flip(1).double() for x in (self.k, self.v))
            score = (k @ self.q[0, :, row, :, None].double())[..., 0] * scale
            score -= slopes[:, None] * torch.arange(keys, device=self.device)
            p = torch.exp(score - score.amax(1, keepdim=True))
            out = (p[..., None] * v).cumsum_(1).div_(p.cumsum(1)[..., None])
            exact = out[:, -1:].clone()
            whole += float(exact.square().sum())
            errors[:, :keys] += out.sub_(exact).square_().sum(-1)
        return errors, whole
