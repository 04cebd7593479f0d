"""Group-relative advantages of ragged groups in one launch, one program per group.

Sums run in fp64: a few thousand numbers, and no rounding worth a reader's time.
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.kernels.launch import FUSED, launch_for, on

_BLOCK = 128


@triton.jit
def _moments(rewards, start, stop, BLOCK: tl.constexpr):
    """Mean, unbiased standard deviation (0 for one sample) and whether any sample differs from the first."""
    lanes = tl.arange(0, BLOCK)
    one = tl.load(rewards + start, mask=start < stop, other=0.0)
    total = tl.zeros([BLOCK], tl.float64)
    differ = tl.zeros([BLOCK], tl.int32)
    for first in range(start, stop, BLOCK):
        at = first + lanes
        r = tl.load(rewards + at, mask=at < stop, other=0.0)
        total += r.to(tl.float64)
        differ |= ((at < stop) & (r != one)).to(tl.int32)
    count = stop - start
    mean = tl.sum(total, 0) / count
    square = tl.zeros([BLOCK], tl.float64)
    for first in range(start, stop, BLOCK):
        at = first + lanes
        d = tl.load(rewards + at, mask=at < stop, other=0.0).to(tl.float64) - mean
        square += tl.where(at < stop, d * d, 0.0)
    std = tl.sqrt(tl.sum(square, 0) / tl.maximum(count - 1, 1))
    return mean, std, tl.max(differ, 0) > 0


@triton.jit(do_not_specialize=["rewards", "offsets", "out", "n", "epsilon"])
def _advantages_kernel(
    rewards,  # [N] fp32
    offsets,  # [S + 1] int64
    out,  # [N] fp32
    n,
    epsilon,
    SCALE: tl.constexpr,  # "group", "batch" or "none"
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    start = tl.load(offsets + group)
    stop = tl.load(offsets + group + 1)
    mean, std, mixed = _moments(rewards, start, stop, BLOCK)
    if SCALE == "batch":
        _, std, _ = _moments(rewards, start * 0, start * 0 + n, BLOCK)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        advantage = tl.load(rewards + at, mask=at < stop, other=0.0).to(tl.float64) - mean
        if SCALE != "none":
            advantage = advantage / (std + epsilon)
        advantage = tl.where(mixed, advantage, 0.0)
        tl.store(out + at, advantage.to(tl.float32), mask=at < stop)


def group_advantages(
    rewards: Tensor,  # [N] fp32
    offsets: Tensor,  # [S + 1] int32 or int64, from 0 to N
    scale: Literal["group", "batch", "none"] = "group",
    epsilon: float = 1e-4,
    out: Tensor | None = None,
) -> Tensor:
    """(r - mean) / (std + epsilon) of each group, std unbiased; exactly 0 in a group whose rewards are all equal."""
    if rewards.ndim != 1 or rewards.dtype != torch.float32:
        raise ValueError(f"rewards must be [N] float32, got {tuple(rewards.shape)} {rewards.dtype}")
    if offsets.ndim != 1 or offsets.dtype not in (torch.int32, torch.int64) or offsets.device != rewards.device:
        raise ValueError(
            f"offsets must be [S + 1] int32 or int64 on {rewards.device}, "
            f"got {tuple(offsets.shape)} {offsets.dtype} on {offsets.device}"
        )
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale must be group, batch or none; got {scale!r}")
    rewards, offsets = rewards.contiguous(), offsets.to(torch.int64).contiguous()
    if out is None:
        out = torch.empty_like(rewards)
    elif out.shape != rewards.shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {tuple(rewards.shape)} float32, got {tuple(out.shape)} {out.dtype}")
    if len(rewards) == 0 or len(offsets) < 2:
        return out
    launch_for(rewards.device)
    with on(rewards.device):
        _advantages_kernel[(len(offsets) - 1,)](
            rewards, offsets, out, len(rewards), epsilon, SCALE=scale, BLOCK=_BLOCK, num_warps=1, **FUSED
        )
    return out
