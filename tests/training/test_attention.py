"""The attention for short heads against the formula in float64, and the network on it against stock code."""

import pytest
import torch

from harness.training import attention, net
from kernels.methods.slopes import alibi_slopes

pytestmark = pytest.mark.skipif(attention.compiler() is None, reason="needs a C++ compiler")


def formula(qkv, slopes):
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    position = torch.arange(qkv.shape[1])
    distance = position[:, None] - position
    bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
    return (torch.softmax(q @ k.transpose(-1, -2) / 4 + bias, -1) @ v).transpose(1, 2)


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("length", [1, 3, 16, 17, 130, 600])
def test_outputs_and_gradients(length, spread):
    torch.manual_seed(length)
    qkv = (spread * torch.randn(2, length, 3, 4, 16)).requires_grad_()
    slopes = alibi_slopes(4, bias_max=8, order="mpt").float()
    output, expected = attention.attend(qkv, slopes), formula(qkv.double(), slopes.double())
    gradient = torch.randn_like(output)
    (found,) = torch.autograd.grad(output, qkv, gradient)
    (wanted,) = torch.autograd.grad(expected, qkv, gradient.double())
    torch.testing.assert_close(output.double(), expected, atol=1e-5 * spread**2, rtol=1e-5)
    torch.testing.assert_close(found.double(), wanted.double(), atol=1e-5 * spread**3, rtol=1e-4)


@torch.inference_mode()
def test_the_network_is_stock_mpt():
    torch.manual_seed(0)
    made = net.Net(net.config(50, d_model=64, layers=2, heads=4))
    ids = torch.randint(50, (2, 200))
    slopes = net.plain_bias(made.shape, 200)
    assert slopes.tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8])
    torch.testing.assert_close(made.logits(made(ids, slopes)), net.to_stock(made)(ids).logits, atol=2e-4, rtol=1e-4)


def test_other_widths_take_the_matrix():
    assert not attention.available(8)
    shape = net.config(50, d_model=32, layers=1, heads=4)
    torch.testing.assert_close(net.plain_bias(shape, 9), net.alibi_bias(4, 9))
