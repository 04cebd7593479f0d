"""Draw tokens from rows of logits, which are read once: sums by block, then a block, then a token of it.

The logits' maximum is each block's own, so no pass over the row comes before. The log-prob is that of the whole row
after temperature; banned tokens count in it and are never drawn.
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.kernels.launch import FUSED, launch_for, on
from grpo_fast.kernels.numerics import LN2, LOG2_E

BLOCK = 256  # tokens
_SPAN = 16  # blocks that one program sums


@triton.jit
def _sums(x):
    """Each row's largest and its sum of 2^(x - largest); nothing of what is -inf."""
    high = tl.max(x, 1)
    return high, tl.sum(tl.where(x == float("-inf"), 0.0, tl.exp2(x - high[:, None])), 1)


@triton.jit
def _relative(tops, high):
    """What sums relative to `tops` weigh relative to `high`."""
    return tl.where(tops == float("-inf"), 0.0, tl.exp2(tops - high))


@triton.jit(do_not_specialize=["blocks", "scale"])
def _block_sums_kernel(
    z,  # [N, V] fp32, row stride `stride`
    allowed,  # [V] int8
    top,  # [N, blocks] fp32: largest logit of the block in bits
    whole,  # the same: sum of 2^(bits - top)
    free_top,  # the same of its allowed tokens alone
    free_whole,
    V,
    stride,
    blocks,
    scale,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = token < V
    x = tl.load(z + row * stride + token, mask=inside, other=float("-inf")) * scale
    free = tl.where(tl.load(allowed + token, mask=inside, other=0) != 0, x, float("-inf"))
    at = row * blocks + block
    high, sums = _sums(x)
    tl.store(top + at, high, mask=block < blocks)
    tl.store(whole + at, sums, mask=block < blocks)
    high, sums = _sums(free)
    tl.store(free_top + at, high, mask=block < blocks)
    tl.store(free_whole + at, sums, mask=block < blocks)


@triton.jit(do_not_specialize=["V", "blocks", "draws", "scale"])
def _draw_kernel(
    z,
    allowed,
    top,
    whole,
    free_top,
    free_whole,
    uniform,  # [N, draws] fp64 in [0, 1)
    tokens,  # [N, draws] int64, -1 where the logits are not finite
    logps,  # [N, draws] fp32
    V,
    stride,
    blocks,
    draws,
    scale,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,  # a power of two that holds them all
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    at = row * blocks + block
    tops = tl.load(top + at, mask=there, other=float("-inf"))
    high = tl.max(tops, 0)
    total = tl.sum(tl.load(whole + at, mask=there, other=0.0) * _relative(tops, high), 0)
    lse = high * LN2 + tl.log(total)

    tops = tl.load(free_top + at, mask=there, other=float("-inf"))
    high = tl.max(tops, 0)
    finite = ((lse - lse) == 0.0) & (high > float("-inf"))
    # In fp64: a vocabulary's running sum in fp32 would give small probabilities in steps.
    sums = tl.load(free_whole + at, mask=there, other=0.0) * _relative(tops, high)
    ends = tl.cumsum(sums.to(tl.float64), 0)
    end = tl.max(ends, 0)
    last = tl.sum((ends < end).to(tl.int32), 0)  # the block where the row reaches its end
    lane = tl.arange(0, BLOCK)
    for draw in range(draws):
        goal = tl.load(uniform + row * draws + draw) * end
        chosen = tl.minimum(tl.sum((ends <= goal).to(tl.int32), 0), last)
        goal -= tl.max(tl.where(block < chosen, ends, 0.0), 0)
        token = chosen * BLOCK + lane
        free = tl.load(allowed + token, mask=token < V, other=0) != 0
        x = tl.load(z + row * stride + token, mask=token < V, other=float("-inf")) * scale
        p = tl.where(free & (x != float("-inf")), tl.exp2(x - high), 0.0).to(tl.float64)
        inner = tl.cumsum(p, 0)
        stop = tl.sum((inner < tl.max(inner, 0)).to(tl.int32), 0)
        place = tl.minimum(tl.sum((inner <= goal).to(tl.int32), 0), stop)
        its = tl.sum(tl.where(lane == place, x, 0.0), 0)
        tl.store(tokens + row * draws + draw, tl.where(finite, chosen * BLOCK + place, -1).to(tl.int64))
        tl.store(logps + row * draws + draw, its * LN2 - lse)


def draw(
    z: Tensor,  # [N, V] fp32
    uniform: Tensor,  # [N, G] fp64 in [0, 1)
    allowed: Tensor,  # [V] bool
    inv_temp: float,
) -> tuple[Tensor, Tensor]:  # [N, G] int64 tokens, -1 where the logits are not finite; [N, G] fp32 log-probs
    (rows, vocab), draws, device = z.shape, uniform.shape[1], z.device
    if z.dtype != torch.float32 or z.stride(1) != 1:
        raise ValueError(f"draw: logits must be fp32 with stride 1 along V, got {z.dtype} with {z.stride()}")
    tokens = torch.empty(rows, draws, dtype=torch.int64, device=device)
    logps = torch.empty(rows, draws, dtype=torch.float32, device=device)
    if rows == 0:
        return tokens, logps
    launch_for(device)
    blocks = triton.cdiv(vocab, BLOCK)
    sums = torch.empty(4, rows, blocks, dtype=torch.float32, device=device)
    allowed, uniform, scale = allowed.to(torch.int8), uniform.contiguous(), inv_temp * LOG2_E
    with on(device):
        _block_sums_kernel[(rows, triton.cdiv(blocks, _SPAN))](
            z, allowed, *sums, vocab, z.stride(0), blocks, scale, BLOCK=BLOCK, SPAN=_SPAN, **FUSED
        )  # fmt: skip
        _draw_kernel[(rows,)](
            z, allowed, *sums, uniform, tokens, logps, vocab, z.stride(0), blocks, draws, scale,
            BLOCK=BLOCK, BLOCKS=triton.next_power_of_2(blocks), **FUSED,
        )  # fmt: skip
    return tokens, logps
