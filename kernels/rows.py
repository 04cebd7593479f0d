"""The row pass: rows of fp32 logits become log-probs and unit gradient rows.

One program per row, looped over blocks and persistent over the SMs, so that the rows in flight stay in L2 for the
second read. The target is left out of the running sums: `s - e_y` keeps the exact gradient of a confident token.

Bits: the width of the stores decides which lanes a thread holds, and so the order of the sums. Whether rows are written
is therefore a run-time value: scoring alone and scoring with gradients are one binary, with the same log-probs.
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.kernels.launch import FUSED, launch_for, on
from grpo_fast.kernels.numerics import expm1, log1p, tanh_and_slope
from grpo_fast.rowstats import RowStats

_LOWEST = tl.constexpr(-1e38)  # finite, so that no difference of two of them is NaN
_RUNTIME = ["n", "y", "logp", "entropy", "m", "s", "inv_temp", "softcap"]


@triton.jit
def _scaled(z, inv_temp, softcap, SOFTCAP: tl.constexpr):
    """z' = inv_temp * softcap * tanh(z / softcap), and the slope of the soft cap."""
    if SOFTCAP:
        t, slope = tanh_and_slope(z / softcap)
        x = t * (softcap * inv_temp)
    else:
        slope = tl.full(z.shape, 1.0, tl.float32)
        x = z * inv_temp
    return x, slope


@triton.jit(do_not_specialize=[*_RUNTIME, "write"])
def _exp_rows_kernel(
    z,  # [n, V] fp32, row stride z_stride
    out,  # [n, V], row stride out_stride; may be z; of its type alone without `write`
    y,  # [n] int64
    logp,  # [n] fp32, as entropy, m and s
    entropy,
    m,
    s,
    n,
    V,
    z_stride,
    out_stride,
    inv_temp,
    softcap,
    write,  # 0: only the statistics
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    for row in range(tl.program_id(0).to(tl.int64), n, tl.num_programs(0)):
        target = tl.load(y + row).to(tl.int32)
        row_in = z + row * z_stride
        row_out = out + row * out_stride
        if target >= 0:
            # Each lane keeps its own running max; one exp per element serves both the new term and the rescale.
            lane_m = tl.full([BLOCK], _LOWEST, tl.float32)
            lane_s = tl.zeros([BLOCK], tl.float32)
            lane_t = tl.zeros([BLOCK], tl.float32)  # sum of e * (z' - lane_m)
            for start in range(0, V, BLOCK):
                cols = start + lanes
                raw = tl.load(row_in + cols, mask=cols < V, other=0.0)
                x, _ = _scaled(raw, inv_temp, softcap, SOFTCAP)
                x = tl.where((cols < V) & (cols != target), x, float("-inf"))
                d = x - lane_m
                d = tl.where(d < -200.0, -200.0, d)  # exp gives 0, and 0 * d is 0 rather than NaN
                e = tl.exp(-tl.abs(d))
                higher = d > 0
                lane_t = tl.where(higher, (lane_t - lane_s * d) * e, lane_t + e * d)
                lane_s = tl.where(higher, lane_s * e + 1.0, lane_s + e)
                lane_m = tl.where(higher, x, lane_m)
            raw_y = tl.load(row_in + target, mask=target < V, other=float("nan"))
            x_y, _ = _scaled(raw_y, inv_temp, softcap, SOFTCAP)
            others_m = tl.max(lane_m, 0)
            row_m = tl.where(x_y > others_m, x_y, others_m)
            gap = tl.where(lane_m - row_m < -200.0, -200.0, lane_m - row_m)
            weight = tl.exp(gap)
            others = tl.sum(lane_s * weight, 0)
            gap_y = tl.where(x_y - row_m < -200.0, -200.0, x_y - row_m)
            e_y = tl.exp(gap_y)
            row_s = others + e_y
            log_s = tl.log(row_s)
            row_t = tl.sum((lane_t + lane_s * gap) * weight, 0) + e_y * gap_y
            tl.store(logp + row, tl.where(x_y == row_m, -log1p(others), x_y - row_m - log_s))
            tl.store(entropy + row, log_s - row_t / row_s)
            tl.store(m + row, row_m)
            tl.store(s + row, row_s)
            if write != 0:
                for start in range(0, V, BLOCK):
                    cols = start + lanes
                    raw = tl.load(row_in + cols, mask=cols < V, other=0.0)
                    x, slope = _scaled(raw, inv_temp, softcap, SOFTCAP)
                    e = tl.where(cols == target, -others, tl.exp(x - row_m)) * slope
                    tl.store(row_out + cols, e.to(out.dtype.element_ty), mask=cols < V)
        else:
            tl.store(logp + row, 0.0)
            tl.store(entropy + row, 0.0)
            tl.store(m + row, 0.0)
            tl.store(s + row, 1.0)
            if write != 0:
                for start in range(0, V, BLOCK):
                    cols = start + lanes
                    tl.store(row_out + cols, tl.zeros([BLOCK], out.dtype.element_ty), mask=cols < V)


@triton.jit(do_not_specialize=[*_RUNTIME, "g", "g_entropy"])
def _grad_rows_kernel(
    z,  # [n, V] fp32, row stride z_stride
    out,  # [n, V], row stride out_stride; may be z
    y,  # [n] int64
    logp,  # [n] fp32, as all that follow
    entropy,
    m,
    s,
    g,
    g_entropy,
    n,
    V,
    z_stride,
    out_stride,
    inv_temp,
    softcap,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    for row in range(tl.program_id(0).to(tl.int64), n, tl.num_programs(0)):
        target = tl.load(y + row).to(tl.int32)
        row_in = z + row * z_stride
        row_out = out + row * out_stride
        if target >= 0:
            log_sum = tl.load(m + row) + tl.log(tl.load(s + row))
            row_entropy = tl.load(entropy + row)
            others = -expm1(tl.load(logp + row))  # 1 - p_y
            row_g = tl.load(g + row)
            row_g_entropy = tl.load(g_entropy + row)
            for start in range(0, V, BLOCK):
                cols = start + lanes
                raw = tl.load(row_in + cols, mask=cols < V, other=0.0)
                x, slope = _scaled(raw, inv_temp, softcap, SOFTCAP)
                log_p = tl.where(x - log_sum < -200.0, -200.0, x - log_sum)
                p = tl.exp(log_p)
                dz = row_g * tl.where(cols == target, others, -p) - row_g_entropy * p * (log_p + row_entropy)
                tl.store(row_out + cols, (inv_temp * slope * dz).to(out.dtype.element_ty), mask=cols < V)
        else:
            for start in range(0, V, BLOCK):
                cols = start + lanes
                tl.store(row_out + cols, tl.zeros([BLOCK], out.dtype.element_ty), mask=cols < V)


def exp_rows(z: Tensor, y: Tensor, inv_temp: float, softcap: float, out: Tensor | None = None) -> RowStats:
    """z [n, V] fp32 becomes E', in place or in `out` (fp32 or bf16, apart from z).

    E' reaches V, beyond fp16's range: for fp16 gradients give grad_rows the rows' g instead.
    """
    out = _check(z, y, out)
    if out.dtype == torch.float16:
        raise ValueError("exp_rows: E' does not fit in float16; use bfloat16, or grad_rows with the rows' g")
    return _exp(z, y, inv_temp, softcap, out, write=True)


def stats_rows(z: Tensor, y: Tensor, inv_temp: float, softcap: float, dtype: torch.dtype = torch.float32) -> RowStats:
    """The statistics alone, to the bit those that exp_rows has where it writes `dtype`; z is left as it was."""
    _check(z, y, None)
    return _exp(z, y, inv_temp, softcap, z if dtype == z.dtype else z.new_empty(1, dtype=dtype), write=False)


def grad_rows(
    z: Tensor,
    y: Tensor,
    stats: RowStats,
    g: Tensor,
    g_entropy: Tensor,
    inv_temp: float,
    softcap: float,
    out: Tensor | None = None,
) -> None:
    """z [n, V] fp32 becomes g * dlogp/dz + g_entropy * dentropy/dz, in place or in `out` (fp32, bf16 or fp16)."""
    out = _check(z, y, out)
    per_row = [t.contiguous() for t in (*stats, g.float(), g_entropy.float())]  # an expanded gradient has stride 0
    for name, t in zip((*RowStats._fields, "g", "g_entropy"), per_row, strict=True):
        if t.shape != y.shape:
            raise ValueError(f"grad_rows: {name} must be [{len(z)}], got {tuple(t.shape)}")
    n, V = z.shape
    if z.numel() == 0:
        return
    table, programs = launch_for(z.device)
    with on(z.device):
        _grad_rows_kernel[(min(n, programs),)](
            z, out, y.contiguous(), *per_row, n, V, z.stride(0), out.stride(0), inv_temp, softcap,
            SOFTCAP=softcap != 0.0, BLOCK=table.row_block, num_warps=table.row_warps, **FUSED,
        )  # fmt: skip


def _exp(z: Tensor, y: Tensor, inv_temp: float, softcap: float, out: Tensor, write: bool) -> RowStats:
    n, V = z.shape
    stats = RowStats(*(torch.empty(n, dtype=torch.float32, device=z.device) for _ in RowStats._fields))
    if n == 0:
        return stats
    table, programs = launch_for(z.device)
    stride = out.stride(0) if write else z.stride(0)
    with on(z.device):
        _exp_rows_kernel[(min(n, programs),)](
            z, out, y.contiguous(), *stats, n, V, z.stride(0), stride, inv_temp, softcap, int(write),
            SOFTCAP=softcap != 0.0, BLOCK=table.row_block, num_warps=table.row_warps, **FUSED,
        )  # fmt: skip
    return stats


def _check(z: Tensor, y: Tensor, out: Tensor | None) -> Tensor:
    """Refuse what the kernels cannot read; gives back where they write."""
    if z.dtype != torch.float32 or z.ndim != 2:
        raise ValueError(f"logits must be [n, V] float32, got {tuple(z.shape)} {z.dtype}")
    if y.dtype != torch.int64 or y.shape != z.shape[:1] or y.device != z.device:
        raise ValueError(
            f"targets must be [{len(z)}] int64 on {z.device}, got {tuple(y.shape)} {y.dtype} on {y.device}"
        )
    if out is None:
        out = z
    elif out.shape != z.shape or out.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"out must be {tuple(z.shape)} float32, bfloat16 or float16, got {tuple(out.shape)} {out.dtype}"
        )
    for name, t in (("logits", z), ("out", out)):
        if t.shape[1] > 1 and t.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along the vocabulary, got strides {t.stride()}")
    return out
