"""Copy rows by index, and add the copies' gradients back in fp32, in a fixed order and without atomics."""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.kernels.launch import FUSED, launch_for, on

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 1024


@triton.jit(do_not_specialize=["index", "width_blocks"])
def _gather_kernel(
    x,  # [T, width], row stride x_stride
    index,  # [M] int32
    out,  # [M, width] contiguous
    width,
    width_blocks,
    x_stride,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // width_blocks).to(tl.int64)
    cols = (program % width_blocks) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(index + row).to(tl.int64)
    copied = tl.load(x + source * x_stride + cols, mask=cols < width)
    tl.store(out + row * width + cols, copied, mask=cols < width)


@triton.jit(do_not_specialize=["offsets", "dest", "width_blocks"])
def _gather_backward_kernel(
    grad,  # [M, width], row stride grad_stride
    offsets,  # [T + 1] int64
    dest,  # [M] int32: the copies of source row t are dest[offsets[t] : offsets[t + 1]]
    out,  # [T, width] contiguous
    width,
    width_blocks,
    grad_stride,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // width_blocks).to(tl.int64)
    cols = (program % width_blocks) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        copy = tl.load(dest + at).to(tl.int64)
        total += tl.load(grad + copy * grad_stride + cols, mask=cols < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + cols, total.to(out.dtype.element_ty), mask=cols < width)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x [T, ...] -> [M, ...], row i being x[index[i]]."""
    rows = _rows(x, "x")
    index = _indices("index", index, x.device, torch.int32)
    out = x.new_empty(len(index), *x.shape[1:])
    if out.numel() == 0:
        return out
    launch_for(x.device)
    width = rows.shape[1]
    blocks = triton.cdiv(width, _BLOCK)
    with on(x.device):
        _gather_kernel[(len(index) * blocks,)](rows, index, out, width, blocks, rows.stride(0), BLOCK=_BLOCK, **FUSED)
    return out


def gather_backward(grad: Tensor, offsets: Tensor, dest: Tensor) -> Tensor:
    """grad [M, ...] -> [T, ...]: row t is the fp32 sum of grad[dest[offsets[t]:offsets[t + 1]]], in that order."""
    rows = _rows(grad, "grad")
    offsets = _indices("offsets", offsets, grad.device, torch.int64)
    dest = _indices("dest", dest, grad.device, torch.int32)
    out = grad.new_empty(len(offsets) - 1, *grad.shape[1:])
    if out.numel() == 0:
        return out
    launch_for(grad.device)
    width = out[0].numel()
    blocks = triton.cdiv(width, _BLOCK)
    with on(grad.device):
        _gather_backward_kernel[(len(out) * blocks,)](
            rows, offsets, dest, out, width, blocks, rows.stride(0), BLOCK=_BLOCK, **FUSED
        )
    return out


def _rows(x: Tensor, name: str) -> Tensor:
    """[T, width] with rows contiguous; a gradient that was expanded is copied."""
    if x.ndim == 0 or x.dtype not in _DTYPES:
        raise ValueError(f"kv_gather: {name} must be rows of float32, bfloat16 or float16, got {x.ndim}d {x.dtype}")
    flat = x.reshape(x.shape[0], x.shape[1:].numel())
    return flat if flat.shape[1] <= 1 or flat.stride(1) == 1 else flat.contiguous()


def _indices(name: str, x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """In the one integer type that the kernels are compiled for."""
    if x.ndim != 1 or x.dtype not in (torch.int32, torch.int64) or x.device != device:
        raise ValueError(
            f"kv_gather: {name} must be 1d int32 or int64 on {device}, got {x.ndim}d {x.dtype} on {x.device}"
        )
    return x.to(dtype).contiguous()
