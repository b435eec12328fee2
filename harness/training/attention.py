"""Causal attention with the ALiBi bias for heads of 16 numbers, by the C++ code beside this file.

torch's fused attention spends most of a training step on heads this short. The code is compiled at
its first use for the processor at hand, and runs in one thread.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

WIDTH = 16
SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


def compiler() -> str | None:
    """Return the path of the C++ compiler, $CXX or c++ or g++; None if there is none."""
    names = (os.environ.get("CXX"), "c++", "g++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def available(width: int) -> bool:
    """Return whether `attend` can be used for heads of `width` numbers here."""
    return width == WIDTH and compiler() is not None


@functools.cache
def _library() -> ctypes.CDLL:
    command = compiler()
    assert command is not None, "no C++ compiler: see `available`"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "attention.so"
        subprocess.run([command, *FLAGS, str(SOURCE), "-o", str(file)], check=True)
        return ctypes.CDLL(str(file))


def _pointer(x: Tensor) -> ctypes.c_void_p:
    assert x.is_contiguous() and x.dtype == torch.float32
    return ctypes.c_void_p(x.data_ptr())


@torch.library.custom_op("plsh_training::attend", mutates_args=())
def _attend(qkv: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    output, lse = qkv.new_empty(batch, length, heads, width), qkv.new_empty(batch, heads, length)
    scale = ctypes.c_float(width**-0.5)
    _library().forward(_pointer(qkv), _pointer(slopes), batch, length, heads, scale, _pointer(output), _pointer(lse))
    return output, lse


@_attend.register_fake
def _(qkv: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    return qkv.new_empty(batch, length, heads, width), qkv.new_empty(batch, heads, length)


@torch.library.custom_op("plsh_training::attend_backward", mutates_args=())
def _attend_backward(qkv: Tensor, slopes: Tensor, output: Tensor, lse: Tensor, gradient: Tensor) -> Tensor:
    batch, length, _, heads, width = qkv.shape
    result = torch.empty_like(qkv)
    pointers = [_pointer(x) for x in (qkv, slopes, output, lse, gradient)]
    _library().backward(*pointers, batch, length, heads, ctypes.c_float(width**-0.5), _pointer(result))
    return result


@_attend_backward.register_fake
def _(qkv: Tensor, slopes: Tensor, output: Tensor, lse: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(qkv)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
    qkv, slopes, output, lse = ctx.saved_tensors
    return _attend_backward(qkv, slopes, output, lse, gradient.contiguous()), None


_attend.register_autograd(_gradients, setup_context=_remember)


def attend(qkv: Tensor, slopes: Tensor) -> Tensor:
    """Return the outputs (batch, length, heads, 16) of causal ALiBi attention, in float32.

    Keys with less than e^-30 of the weight of a query's own key may be left out.

    Args:
        qkv: queries, keys and values (batch, length, 3, heads, 16).
        slopes: slopes (heads,).
    """
    return _attend(qkv.float().contiguous(), slopes)[0]
