"""The head's first product with exp in its epilogue: E = exp2(scale * h W^T - shift), shift = the target's own logit.

The target is a sampled token, so its logit is a good shift: no running max, no second pass over the logits. bf16 has
fp32's exponent range; what still leaves it is recomputed by `rescue_kernel`, never returned wrong.

Bits: partial sums are stored and added in one order, K is walked in one order, and a row's place in its tile does not
matter, so a row has the same bits whatever N is. The store and sums-only variants share their tiles and the kernel that
adds the partial sums. A raised shift (expected_logp < -40) changes the rounding of that row's logp, by about 1e-6.
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.kernels.exp_guards import (
    EIGHTHS,
    RESCUE_BLOCK,
    SHIFT_DEPTH,
    SHIFT_ROWS,
    TILES,
    raise_bits,
    rescue_kernel,
    shift_kernel,
    target_kernel,
)
from grpo_fast.kernels.head_gemm import COLUMNS, head_gemm, why_unavailable
from grpo_fast.kernels.launch import FUSED, INTERPRETED, UPCAST, Gemm, allow_scratch, launch_for, on
from grpo_fast.kernels.numerics import LN2, LOG2_E
from grpo_fast.rowstats import RowStats

_X_MAX = tl.constexpr(100.0)  # bits: a row of V terms at 2^100 still sums within fp32
_ROWS = 32  # of partial sums that one program of _finish_kernel adds


@triton.jit(do_not_specialize=["shift", "sums", "weighted", "N", "V", *EIGHTHS, "scale"])
def _gemm_exp_kernel(
    h,  # [N, K] bf16, row stride 8 * h_stride8
    w,  # [V, K] bf16, row stride 8 * w_stride8
    e,  # [N, V] bf16, row stride 8 * e_stride8; written with STORE
    shift,  # [N] fp32
    sums,  # [ceil(V / BN), N] fp32: sum of exp2(x) over a tile's columns
    weighted,  # the same of exp2(x) * x; written with ENTROPY
    N,
    V,
    K8,
    h_stride8,
    w_stride8,
    e_stride8,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPECIALISED: tl.constexpr,
    STORE: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    K, h_stride, w_stride, e_stride = K8 * 8, h_stride8 * 8, w_stride8 * 8, e_stride8 * 8
    row_tiles = tl.cdiv(N, BM)
    col_tiles = tl.cdiv(V, BN)
    k_tiles = tl.cdiv(K, BK)
    if DESCRIPTORS:
        h_tiles = tl.make_tensor_descriptor(h, shape=[N, K], strides=[h_stride, 1], block_shape=[BM, BK])
        w_tiles = tl.make_tensor_descriptor(w, shape=[V, K], strides=[w_stride, 1], block_shape=[BN, BK])
        if STORE:
            e_tiles = tl.make_tensor_descriptor(e, shape=[N, V], strides=[e_stride, 1], block_shape=[BM, BN])
    # flatten=True or 8 warps would silently drop the specialisation.
    for tile in tl.range(
        tl.program_id(0), row_tiles * col_tiles, tl.num_programs(0), flatten=False, warp_specialize=SPECIALISED
    ):
        group = tile // (GROUP * col_tiles)
        within = tile % (GROUP * col_tiles)
        first = group * GROUP
        height = min(row_tiles - first, GROUP)
        pm = first + within % height
        pn = within // height
        rows = pm * BM + tl.arange(0, BM)
        cols = pn * BN + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        if DESCRIPTORS:
            for k in range(k_tiles):
                a = h_tiles.load([pm * BM, k * BK])
                b = w_tiles.load([pn * BN, k * BK])
                if UPCAST:
                    a, b = a.to(tl.float32), b.to(tl.float32)
                acc = tl.dot(a, b.T, acc)
        else:
            # Rows and columns past the end read the last one; the epilogue masks what comes of it.
            h_rows = h + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * h_stride
            w_rows = w + tl.minimum(cols, V - 1).to(tl.int64)[None, :] * w_stride
            for k in range(k_tiles):
                depth = k * BK + tl.arange(0, BK)
                a = tl.load(h_rows + depth[None, :], mask=(depth < K)[None, :], other=0.0)
                b = tl.load(w_rows + depth[:, None], mask=(depth < K)[:, None], other=0.0)
                if UPCAST:
                    a, b = a.to(tl.float32), b.to(tl.float32)
                acc = tl.dot(a, b, acc)
        inside = rows < N
        c = tl.load(shift + rows, mask=inside, other=float("inf"))
        x = tl.minimum(acc * scale - c[:, None], _X_MAX, propagate_nan=tl.PropagateNan.ALL)
        # Selected, not multiplied: a row that is not scored may hold NaN. -1e30 rather than -inf, for exp2(x) * x.
        x = tl.where((cols < V)[None, :] & (c != float("inf"))[:, None], x, -1e30)
        p = tl.exp2(x)
        part = pn.to(tl.int64) * N + rows
        tl.store(sums + part, tl.sum(p, 1), mask=inside)
        if ENTROPY:
            tl.store(weighted + part, tl.sum(p * x, 1), mask=inside)
        if STORE:
            if DESCRIPTORS:
                e_tiles.store([pm * BM, pn * BN], p.to(tl.bfloat16))
            else:
                e_at = e + rows.to(tl.int64)[:, None] * e_stride + cols[None, :]
                tl.store(e_at, p.to(tl.bfloat16), mask=inside[:, None] & (cols < V)[None, :])


@triton.jit(
    do_not_specialize=[
        "y", "expected_logp", "shift", "sums", "weighted", "logp", "entropy", "m", "s", "N", "tiles",
    ]
)  # fmt: skip
def _finish_kernel(
    y,
    expected_logp,
    shift,
    sums,  # [tiles, N] fp32
    weighted,  # [tiles, N] fp32
    logp,  # [N] fp32, as entropy, m and s
    entropy,
    m,
    s,
    N,
    tiles,
    EXPECTED: tl.constexpr,
    ENTROPY: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Add the partial sums in a fixed order."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    total = tl.zeros([ROWS], tl.float32)
    moment = tl.zeros([ROWS], tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        at = tile.to(tl.int64)[:, None] * N + rows[None, :]
        mask = (tile < tiles)[:, None] & inside[None, :]
        total += tl.sum(tl.load(sums + at, mask=mask, other=0.0), 0)
        if ENTROPY:
            moment += tl.sum(tl.load(weighted + at, mask=mask, other=0.0), 0)
    scored = tl.load(y + rows, mask=inside, other=-1) >= 0
    total = tl.where(scored, total, 1.0)
    log_total = tl.log(total)
    row_logp = -log_total
    if EXPECTED:
        row_logp -= raise_bits(tl.load(expected_logp + rows, mask=inside, other=0.0)) * LN2
    tl.store(logp + rows, tl.where(scored, row_logp, 0.0), mask=inside)
    tl.store(s + rows, total, mask=inside)
    bits = tl.load(shift + rows, mask=inside, other=0.0)
    tl.store(m + rows, tl.where(scored, bits * LN2, 0.0), mask=inside)
    if ENTROPY:
        tl.store(entropy + rows, tl.where(scored, log_total - moment / total * LN2, 0.0), mask=inside)


def supports(h: Tensor, w: Tensor) -> str | None:
    """Why these operands cannot take this path; None where they can."""
    for name, t in (("hidden", h), ("weight", w)):
        if t.dtype != torch.bfloat16:
            return f"{name} is {t.dtype}, not bfloat16"
        if t.ndim != 2:
            return f"{name} has {t.ndim} dimensions, not 2"
        if t.shape[1] % 8:
            return f"{name} has a width of {t.shape[1]}, not a multiple of 8"
        if t.stride(1) != 1 or t.stride(0) % 8 or t.stride(0) < t.shape[1]:
            return f"{name} has strides {t.stride()}; rows must be contiguous and start 16 bytes apart"
        if t.data_ptr() % 16:
            return f"{name} does not start at a multiple of 16 bytes"
    if h.shape[1] != w.shape[1]:
        return f"hidden is {h.shape[1]} wide, weight {w.shape[1]}"
    if h.device != w.device:
        return f"hidden is on {h.device}, weight on {w.device}"
    if h.device.type != "cuda" and not INTERPRETED:
        return f"{h.device} is not a CUDA device"
    return None


def shifted_exp(
    h: Tensor,  # [N, K] bf16
    w: Tensor,  # [V, K] bf16
    y: Tensor,  # [N] int64, < 0 where not scored
    inv_temp: float,
    expected_logp: Tensor | None = None,  # [N]: what the log-probs may be, the old policy's say
    store: bool = True,
    entropy: bool = False,
    tiles: Gemm | None = None,
    descriptors: bool | None = None,
    cuda: bool | None = None,
) -> tuple[Tensor | None, RowStats]:
    """Unit gradient rows E' [N, V] bf16 (None without `store`) and the rows' statistics.

    d logp / d z_j = -inv_temp * E'_j / s, and log-sum-exp = m + ln s: m is the row's shift in nats, not its maximum.
    E' beside the entropy does not fit in registers: with `store`, stats.entropy is None, and follows from the product
    U = E' @ w that the gradient takes anyway, as -logp - inv_temp * (h . U) / s.
    `tiles`, `descriptors` and `cuda` (the product of csrc/) replace the launch table's choice.
    """
    reason = supports(h, w)
    if reason:
        raise ValueError(f"shifted_exp: {reason}")
    if store and entropy:
        raise ValueError("shifted_exp: store=True leaves the entropy to -logp - inv_temp * (h . (E' @ w)) / s")
    (N, K), V, device = h.shape, w.shape[0], h.device
    if V == 0:
        raise ValueError("shifted_exp: the vocabulary is empty")
    for name, t in (("y", y), ("expected_logp", expected_logp)):
        if t is not None and (t.shape != (N,) or t.device != device):
            raise ValueError(f"shifted_exp: {name} must be [{N}] on {device}, got {tuple(t.shape)} on {t.device}")
    if y.dtype != torch.int64:
        raise ValueError(f"shifted_exp: y must be int64, got {y.dtype}")

    table, programs = launch_for(device)
    by_descriptor = table.descriptors if descriptors is None else descriptors
    gemm = tiles or table.product(store, by_descriptor)
    if gemm.specialised and not by_descriptor:
        raise ValueError("shifted_exp: specialised tiles need descriptors")
    if cuda is None:
        cuda = table.cuda and tiles is None and why_unavailable(device) is None
    columns = COLUMNS if cuda else gemm.bn
    col_tiles = triton.cdiv(V, columns)

    def per_row() -> Tensor:
        return torch.empty(N, dtype=torch.float32, device=device)

    logp, m, s, shift = per_row(), per_row(), per_row(), per_row()
    row_entropy = per_row() if entropy else None
    stats = RowStats(logp, row_entropy, m, s)  # pyright: ignore[reportArgumentType]
    e = h.new_empty(N, (V + 7) // 8 * 8)[:, :V] if store else None  # rows start 16 bytes apart
    if N == 0:
        return e, stats
    sums = torch.empty(col_tiles, N, dtype=torch.float32, device=device)
    moments = torch.empty_like(sums) if entropy else sums
    y = y.contiguous()
    expected = y if expected_logp is None else expected_logp.float().contiguous()
    has_expected = expected_logp is not None
    K8, h_stride8, w_stride8 = K // 8, h.stride(0) // 8, w.stride(0) // 8
    e_ptr, e_stride8 = (h, 0) if e is None else (e, e.stride(0) // 8)
    entropy_ptr = logp if row_entropy is None else row_entropy
    scale = inv_temp * LOG2_E
    block_k = min(1024, triton.next_power_of_2(K))
    with on(device):
        shift_kernel[(triton.cdiv(N, SHIFT_ROWS),)](
            h, w, y, expected, shift, N, V, K8, h_stride8, w_stride8, scale, EXPECTED=has_expected,
            ROWS=SHIFT_ROWS, BK=SHIFT_DEPTH, **FUSED,
        )  # fmt: skip
        if cuda:
            head_gemm(h, w, e, shift, sums, moments if entropy else None, scale, gemm.group)
        else:
            if by_descriptor:
                allow_scratch(device)
            _gemm_exp_kernel[(min(programs, triton.cdiv(N, gemm.bm) * col_tiles),)](
                h, w, e_ptr, shift, sums, moments, N, V, K8, h_stride8, w_stride8, e_stride8, scale,
                BM=gemm.bm, BN=gemm.bn, BK=gemm.bk, GROUP=gemm.group, DESCRIPTORS=by_descriptor,
                SPECIALISED=gemm.specialised, STORE=store, ENTROPY=entropy, num_warps=gemm.warps,
                num_stages=gemm.stages, **FUSED,
            )  # fmt: skip
        _finish_kernel[(triton.cdiv(N, _ROWS),)](
            y, expected, shift, sums, moments, logp, entropy_ptr, m, s, N, col_tiles,
            EXPECTED=has_expected, ENTROPY=entropy, ROWS=_ROWS, TILES=TILES, **FUSED,
        )  # fmt: skip
        if store:
            target_kernel[(N,)](
                e_ptr, y, expected, sums, s, N, V, e_stride8, col_tiles,
                EXPECTED=has_expected, BN=columns, TILES=TILES, **FUSED,
            )  # fmt: skip
        rescue_kernel[(N,)](
            h, w, e_ptr, y, logp, entropy_ptr, m, s, V, K8, h_stride8, w_stride8, e_stride8, scale,
            STORE=store, ENTROPY=entropy, BLOCK_V=RESCUE_BLOCK, BLOCK_K=RESCUE_BLOCK, BLOCK_Y=block_k, **FUSED,
        )  # fmt: skip
    return e, stats
