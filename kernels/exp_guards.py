"""The guards around shifted_exp's product: where its shift comes from, and what is not left to it.

The shift is the target's own logit, raised where that would overflow. A confident token gets its gradient from the
other columns alone; a row whose sum left the safe range is computed again about its own maximum.
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from grpo_fast.kernels.launch import INTERPRETED, UPCAST
from grpo_fast.kernels.numerics import LN2, log1p

_LOWEST = tl.constexpr(-1e38)
_S_MAX = tl.constexpr(2.0**100)  # a clamped row reaches it
_S_MIN = tl.constexpr(2.0**-80)  # the shift was raised far too much
_CONFIDENT = tl.constexpr(1.0 / (1.0 - 1e-2))  # S / e_y below this: 1 - p < 1e-2
# The width and the row strides travel in units of 8 elements: 16 bytes, which descriptors and vector loads need known.
EIGHTHS = ["K8", "h_stride8", "w_stride8", "e_stride8"]
TILES = 32  # partial sums of one row that a kernel reads at a time
SHIFT_ROWS = 16 if INTERPRETED else 64  # 64: what a warpgroup's product takes
SHIFT_DEPTH = 64
RESCUE_BLOCK = 64  # columns, and depth, of the weights that a rescue reads at a time


@triton.jit
def raise_bits(expected_logp):
    """Whole bits by which a shift is raised where the log-prob may be very low; 0 where unknown (NaN)."""
    bits = tl.floor(-expected_logp * (1.0 / LN2))
    return tl.where(expected_logp < -40.0, tl.where(bits > 4096.0, 4096.0, bits), 0.0)


@triton.jit
def _target_logit(h_row, w_row, K, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        at = start + lanes
        mask = at < K
        a = tl.load(h_row + at, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(w_row + at, mask=mask, other=0.0).to(tl.float32)
        total += a * b
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["y", "expected_logp", "shift", "N", "V", *EIGHTHS, "scale"])
def shift_kernel(
    h,  # [N, K] bf16
    w,  # [V, K] bf16
    y,  # [N] int64
    expected_logp,  # [N] fp32
    shift,  # [N] fp32, in bits: +inf where y < 0, NaN where y >= V
    N,
    V,
    K8,
    h_stride8,
    w_stride8,
    scale,
    EXPECTED: tl.constexpr,
    ROWS: tl.constexpr,
    BK: tl.constexpr,
):
    """The targets' logits, as the diagonal of rows times their targets.

    The tensor cores multiply them in GEMM 1's order and so round as there: a confident token's own term is 1, however
    long K is and however the cores round.
    """
    K, h_stride, w_stride = K8 * 8, h_stride8 * 8, w_stride8 * 8
    lanes = tl.arange(0, ROWS)
    rows = tl.program_id(0).to(tl.int64) * ROWS + lanes
    target = tl.load(y + rows, mask=rows < N, other=-1)
    inside = (target >= 0) & (target < V)
    h_rows = h + rows[:, None] * h_stride
    w_rows = w + target[None, :] * w_stride
    acc = tl.zeros((ROWS, ROWS), tl.float32)
    for k in range(tl.cdiv(K, BK)):
        depth = k * BK + tl.arange(0, BK)
        a = tl.load(h_rows + depth[None, :], mask=inside[:, None] & (depth < K)[None, :], other=0.0)
        b = tl.load(w_rows + depth[:, None], mask=inside[None, :] & (depth < K)[:, None], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc)
    c = tl.sum(tl.where(lanes[:, None] == lanes[None, :], acc, 0.0), 1) * scale
    if EXPECTED:
        c += raise_bits(tl.load(expected_logp + rows, mask=rows < N, other=0.0))
    c = tl.where(inside, c, tl.where(target < 0, float("inf"), float("nan")))
    tl.store(shift + rows, c, mask=rows < N)


@triton.jit(do_not_specialize=["y", "expected_logp", "sums", "s", "N", "V", *EIGHTHS, "tiles"])
def target_kernel(
    e,  # [N, V] bf16, row stride 8 * e_stride8
    y,
    expected_logp,
    sums,  # [tiles, N] fp32
    s,  # [N] fp32
    N,
    V,
    e_stride8,
    tiles,
    EXPECTED: tl.constexpr,
    BN: tl.constexpr,
    TILES: tl.constexpr,
):
    """E'_y = -(S - e_y). Where S is almost e_y, the others are summed again without the target."""
    row = tl.program_id(0).to(tl.int64)
    e_row = e + row * (e_stride8 * 8)
    target = tl.load(y + row)
    total = tl.load(s + row)
    if (target >= 0) & (target < V):
        e_y = 1.0
        if EXPECTED:
            e_y = tl.exp2(-raise_bits(tl.load(expected_logp + row)))
        others = total - e_y
        if total < e_y * _CONFIDENT:
            own = target // BN
            cols = own * BN + tl.arange(0, BN)
            near = tl.load(e_row + cols, mask=(cols < V) & (cols != target), other=0.0)
            others = tl.sum(near.to(tl.float32), 0)
            for first in range(0, tiles, TILES):
                tile = first + tl.arange(0, TILES)
                mask = (tile < tiles) & (tile != own)
                others += tl.sum(tl.load(sums + tile.to(tl.int64) * N + row, mask=mask, other=0.0), 0)
        tl.store(e_row + target, (-others).to(tl.bfloat16))


@triton.jit
def _row_logits(h_row, w, cols, V, K, w_stride, BLOCK_K: tl.constexpr):
    total = tl.zeros(cols.shape, tl.float32)
    for start in range(0, K, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        a = tl.load(h_row + depth, mask=depth < K, other=0.0).to(tl.float32)
        at = cols.to(tl.int64)[:, None] * w_stride + depth[None, :]
        b = tl.load(w + at, mask=(cols < V)[:, None] & (depth < K)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(a[None, :] * b, 1)
    return total


@triton.jit(do_not_specialize=["y", "logp", "entropy", "m", "s", "V", *EIGHTHS, "scale"])
def rescue_kernel(
    h,
    w,
    e,
    y,
    logp,
    entropy,
    m,
    s,
    V,
    K8,
    h_stride8,
    w_stride8,
    e_stride8,
    scale,
    STORE: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Y: tl.constexpr,
):
    """Recompute a row whose sum left the safe range, about its own maximum; return at once for all others."""
    row = tl.program_id(0).to(tl.int64)
    saturated = tl.load(s + row)
    if (saturated >= _S_MAX) | (saturated < _S_MIN):
        K, h_stride, w_stride, e_stride = K8 * 8, h_stride8 * 8, w_stride8 * 8, e_stride8 * 8
        target = tl.load(y + row)
        h_row = h + row * h_stride
        x_y = _target_logit(h_row, w + target * w_stride, K, BLOCK_Y) * scale
        high = _LOWEST
        others = 0.0
        moment = 0.0
        for start in range(0, V, BLOCK_V):
            cols = start + tl.arange(0, BLOCK_V)
            x = _row_logits(h_row, w, cols, V, K, w_stride, BLOCK_K) * scale
            x = tl.where((cols < V) & (cols != target), x, _LOWEST)
            new_high = tl.maximum(high, tl.max(x, 0))
            p = tl.exp2(x - new_high)
            p = tl.where(x == _LOWEST, 0.0, p)
            keep = tl.exp2(high - new_high)
            if ENTROPY:
                moment = (moment + others * (high - new_high)) * keep + tl.sum(p * (x - new_high), 0)
            others = others * keep + tl.sum(p, 0)
            high = new_high
        row_high = tl.maximum(high, x_y)
        keep = tl.exp2(high - row_high)
        e_y = tl.exp2(x_y - row_high)
        if ENTROPY:
            moment = (moment + others * (high - row_high)) * keep + e_y * (x_y - row_high)
        others *= keep
        total = others + e_y
        below = (x_y - row_high) * LN2
        tl.store(logp + row, tl.where(x_y == row_high, -log1p(others), below - tl.log(total)))
        tl.store(m + row, row_high * LN2)
        tl.store(s + row, total)
        if ENTROPY:
            tl.store(entropy + row, tl.log(total) - moment / total * LN2)
        if STORE:
            for start in range(0, V, BLOCK_V):
                cols = start + tl.arange(0, BLOCK_V)
                x = _row_logits(h_row, w, cols, V, K, w_stride, BLOCK_K) * scale
                p = tl.where(cols == target, -others, tl.exp2(x - row_high))
                tl.store(e + row * e_stride + cols, p.to(tl.bfloat16), mask=cols < V)
