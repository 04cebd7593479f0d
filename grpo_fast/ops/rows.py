"""The row pass: rows of logits become log-probs and unit gradient rows, in place.

For a row z with target y, z' = inv_temp * softcap(z), m = max z', e = exp(z' - m) and s = sum e:

    logp = z'_y - m - log s        entropy = log s - sum e (z' - m) / s
    E'_j = e_j * d_j  (j != y)     E'_y = -(s - e_y) * d_y        d = d softcap / d z
    d logp / d z_j = -inv_temp * E'_j / s

so a gradient needs only the row factor v = -g * inv_temp / s, known as late as one likes. `s - e_y` is summed
without the target: a confident token keeps its exact gradient instead of rounding to 0. A row with y < 0 is not
scored: it becomes zeros whatever it held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_fast.rowstats import RowStats

BLOCK_BYTES = 4 << 20  # the eager passes go over a block of rows that stays in cache


def exp_rows(
    z: Tensor, y: Tensor, inv_temp: float, softcap: float, backend: str, out: Tensor | None = None
) -> RowStats:
    """z [n, V] fp32 becomes E' (in `out` where given, else in place)."""
    if backend == "native":
        from grpo_fast import native

        return native.exp_rows(z, y, inv_temp, softcap)
    if backend == "triton":
        from grpo_fast.kernels import rows

        return rows.exp_rows(z, y, inv_temp, softcap, out=out)
    return _over_blocks(_exp_block, z, y, inv_temp, softcap)


def stats_rows(
    z: Tensor, y: Tensor, inv_temp: float, softcap: float, backend: str, dtype: torch.dtype | None = None
) -> RowStats:
    """The statistics alone, to the bit those of exp_rows into `dtype` (None: in place); z is left as it was."""
    if backend == "native":
        from grpo_fast import native

        return native.stats_rows(z, y, inv_temp, softcap)
    if backend == "triton":
        from grpo_fast.kernels import rows

        return rows.stats_rows(z, y, inv_temp, softcap, dtype or z.dtype)
    return _over_blocks(_stats_block, z, y, inv_temp, softcap)


def grad_rows(
    z: Tensor,
    y: Tensor,
    stats: RowStats,
    g: Tensor,
    g_entropy: Tensor,
    inv_temp: float,
    softcap: float,
    backend: str,
    out: Tensor | None = None,
) -> None:
    """z [n, V] fp32 becomes g * dlogp/dz + g_entropy * dentropy/dz (in `out` where given, else in place)."""
    if backend == "native":
        from grpo_fast import native

        return native.grad_rows(z, y, stats, g, g_entropy, inv_temp, softcap)
    if backend == "triton":
        from grpo_fast.kernels import rows

        return rows.grad_rows(z, y, stats, g, g_entropy, inv_temp, softcap, out=out)
    step = _block(z)
    for i in range(0, len(z), step):
        rows_ = slice(i, i + step)
        _grad_block(
            z[rows_], y[rows_], RowStats(*(s[rows_] for s in stats)), g[rows_], g_entropy[rows_], inv_temp, softcap
        )
    return None


def _block(z: Tensor) -> int:
    return max(1, BLOCK_BYTES // max(1, z.shape[1] * z.element_size()))


def _over_blocks(one, z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> RowStats:  # type: ignore[no-untyped-def]
    stats = RowStats(*(torch.empty(len(z), dtype=z.dtype, device=z.device) for _ in RowStats._fields))
    step = _block(z)
    for i in range(0, len(z), step):
        rows = slice(i, i + step)
        for whole, part in zip(stats, one(z[rows], y[rows], inv_temp, softcap), strict=True):
            whole[rows] = part
    return stats


def _scaled(z: Tensor, inv_temp: float, softcap: float) -> tuple[Tensor, Tensor | None]:
    """z' and, under a soft cap, its derivative with respect to inv_temp * z."""
    if not softcap:
        return z * inv_temp, None
    t = torch.tanh(z / softcap)
    return t * (softcap * inv_temp), 1 - t * t


def _stats(x: Tensor, y: Tensor) -> tuple[RowStats, Tensor, Tensor]:
    """Statistics of the scaled rows x, with e and the sum of the others; unscored rows give 0, 0, 0, 1."""
    scored = y >= 0
    at = y.clamp(min=0)[:, None]
    m = x.amax(1)
    shifted = x - m[:, None]
    e = shifted.exp()
    e_target, target = e.gather(1, at)[:, 0], shifted.gather(1, at)[:, 0]
    shifted.masked_fill_(e == 0, 0.0)  # 0 * -inf is 0 here
    others = e.scatter(1, at, 0.0).sum(1)
    s = others + e_target
    logp = torch.where(target == 0, -torch.log1p(others), target - s.log())
    entropy = s.log() - (e * shifted).sum(1) / s
    zero, one = x.new_zeros(()), x.new_ones(())
    stats = RowStats(
        torch.where(scored, logp, zero),
        torch.where(scored, entropy, zero),
        torch.where(scored, m, zero),
        torch.where(scored, s, one),
    )
    return stats, e, others


def _stats_block(z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> RowStats:
    return _stats(_scaled(z, inv_temp, softcap)[0], y)[0]


def _exp_block(z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> RowStats:
    x, slope = _scaled(z, inv_temp, softcap)
    stats, e, others = _stats(x, y)
    e.scatter_(1, y.clamp(min=0)[:, None], -others[:, None])
    if slope is not None:
        e *= slope
    z.copy_(e.masked_fill_((y < 0)[:, None], 0.0))
    return stats


def _grad_block(
    z: Tensor, y: Tensor, stats: RowStats, g: Tensor, g_entropy: Tensor, inv_temp: float, softcap: float
) -> None:
    x, slope = _scaled(z, inv_temp, softcap)
    at = y.clamp(min=0)[:, None]
    log_p = x - (stats.m + stats.s.log())[:, None]
    p = log_p.exp()
    log_p.masked_fill_(p == 0, 0.0)
    entropy_part = p * (log_p + stats.entropy[:, None]) * -g_entropy[:, None]
    one_hot = p.neg().scatter_(1, at, -torch.expm1(stats.logp)[:, None])
    dz = (one_hot * g[:, None] + entropy_part) * inv_temp
    if slope is not None:
        dz *= slope
    z.copy_(dz.masked_fill_((y < 0)[:, None], 0.0))
