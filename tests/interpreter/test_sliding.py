"""Kernel `triton`: sliding windows of any number of tokens, forward, decoding and gradients."""

import pytest
import torch

from kernels import Window, alibi_slopes, attend
from kernels.impl.triton.attend import unsupported_call

HEADS = 2


@pytest.mark.parametrize("tokens, sinks", [(64, 0), (250, 5)])
def test_it_agrees_with_the_oracle_forward_decoding_and_backward(tokens: int, sinks: int):
    weights = Window(alibi_slopes(HEADS), 0.0, sinks, tokens)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 300, 16, generator=generator) for h in (HEADS, 1, 1))
    assert unsupported_call(q, weights) is None
    for rows, offset in ((300, 0), (1, 299), (40, 220)):
        keys = offset + rows
        queries, given = q[:, :, offset:keys], (k[:, :, :keys], v[:, :, :keys])
        found = attend(queries, *given, weights, kernel="triton")
        exact = attend(queries, *given, weights, kernel="exact")
        assert (found - exact).abs().max() < 2e-5, (rows, offset)
    both = []
    for kernel in ("triton", "exact"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, weights, kernel=kernel)
        both.append(torch.autograd.grad(out.square().sum(), leaves))
    assert max((a - b).abs().max() for a, b in zip(*both, strict=True)) < 1e-3
