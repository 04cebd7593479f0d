"""Gather rows that several consumers share; the backward sums their copies in fp32, in a fixed order.

One prompt's keys are read by its own queries and by every completion, so a packed row may be copied G + 1 times.
`index_select` would add the copies' gradients in the storage dtype and, on a GPU, in whatever order atomics land.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_fast.ops.backends import choose
from grpo_fast.types import RowGather


def gather_reference(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def gather_backward_reference(
    grad: Tensor,  # [K, ...]
    offsets: Tensor,  # [T + 1]
    dest: Tensor,  # [K]
) -> Tensor:
    """Copy c of every row is added in one vectorised pass, c ascending: as many passes as the most copied row has."""
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    counts = offsets.diff()
    total = grad.new_zeros((counts.numel(), *grad.shape[1:]), dtype=wide)
    for copy in range(int(counts.max()) if counts.numel() else 0):
        rows = (counts > copy).nonzero().squeeze(1)
        copies = dest.index_select(0, offsets.index_select(0, rows) + copy)
        total[rows] += grad.index_select(0, copies).to(wide)
    return total.to(grad.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RowGather) -> Tensor:
        ctx.rows = rows
        if choose("kv_gather", x.device, x.dtype) == "triton":
            from grpo_fast.kernels import kv_gather

            return kv_gather.gather(x.contiguous(), rows.index)
        return gather_reference(x, rows.index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        if choose("kv_gather", grad.device, grad.dtype) == "triton":
            from grpo_fast.kernels import kv_gather

            return kv_gather.gather_backward(grad.contiguous(), ctx.rows.offsets, ctx.rows.dest), None
        return gather_backward_reference(grad, ctx.rows.offsets, ctx.rows.dest), None


def kv_gather(
    x: Tensor,  # [T, ...]
    rows: RowGather,
) -> Tensor:  # [K, ...]
    return _Gather.apply(x, rows)
