"""The policy loss of every row and its derivative, all options, in one launch: a program per sequence.

Pass 1 sums over the sequence what couples its rows, pass 2 sums dL/dratio where the ratio is the sequence's, pass 3
writes. Passes that no option asks for are not compiled. Derivatives are those of torch's operators: `clamp` passes the
gradient at both ends, `min` halves it at a tie (which is every row, on policy).
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.config import CLIPPED, LossOptions
from grpo_fast.kernels.launch import FUSED, launch_for, on
from grpo_fast.types import PolicyRows, PolicyTerms

_BLOCK = 256
_VESPO_FLOOR = tl.constexpr(math.log(1e-8))
_VESPO_CEIL = tl.constexpr(20.0)
_FLOAT_MAX = tl.constexpr(3.4028234663852886e38)
_POINTERS = [
    "logps", "advantages", "weights", "lengths", "ends", "tokens", "old", "ref", "sampler", "keep",
    "loss", "grad", "ratio", "kl", "phi", "correction",
]  # fmt: skip
_SCALARS = [
    "clip_low", "clip_high", "delta", "beta", "threshold", "cut_low", "cut_high",
    "k_pos", "k_neg", "lam_pos", "lam_neg",
]  # fmt: skip


@triton.jit
def _finite_gap(a, b):
    """nan_to_num(a - b, nan=0)."""
    gap = a - b
    gap = tl.where(gap != gap, 0.0, gap)
    gap = tl.where(gap == float("inf"), _FLOAT_MAX, gap)
    return tl.where(gap == float("-inf"), -_FLOAT_MAX, gap)


@triton.jit
def _clamp(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _corrected(gap, cut_low, cut_high, TRUNCATE: tl.constexpr):
    """The sampler correction of a log-ratio: cut to the bounds, or 0 outside them."""
    ratio = tl.exp(gap)
    if TRUNCATE:
        return _clamp(ratio, cut_low, cut_high)
    else:
        return tl.where((ratio < cut_low) | (ratio > cut_high), 0.0, ratio)


@triton.jit
def _log_corrected(correction):
    return _clamp(tl.log(correction), _VESPO_FLOOR, _VESPO_CEIL)


@triton.jit
def _terms(
    logp,
    ratio,
    advantage,
    ref_logp,
    factor,  # what the policy term is multiplied with: masks and sampler correction
    sequence_log_w,
    clip_low,
    clip_high,
    delta,
    beta,
    k_pos,
    k_neg,
    lam_pos,
    lam_neg,
    LOSS: tl.constexpr,
    DELTA: tl.constexpr,
    KL: tl.constexpr,
    BIAS_CORRECTION: tl.constexpr,
):
    """Loss, its derivatives with respect to the ratio and directly to logp, KL and phi, before the row's weight."""
    zero = tl.zeros(logp.shape, tl.float32)
    by_ratio, by_logp, kl, phi = zero, zero, zero, zero
    if LOSS == "cispo":
        scale = -tl.where(ratio > clip_high, clip_high, ratio) * advantage
        loss = scale * logp
        by_logp = scale
    elif LOSS == "sapo":
        steep = tl.where(advantage > 0, k_pos, k_neg)
        sigmoid = 1.0 / (1.0 + tl.exp(-steep * (ratio - 1.0)))
        loss = -sigmoid * 4.0 / steep * advantage
        by_ratio = -4.0 * sigmoid * (1.0 - sigmoid) * advantage
    elif LOSS == "vespo":
        k = tl.where(advantage >= 0, k_pos, k_neg)
        lam = tl.where(advantage >= 0, lam_pos, lam_neg)
        lam = tl.where(lam < 1e-4, 1e-4, lam)
        phi = tl.exp(lam + k * sequence_log_w - lam * tl.exp(sequence_log_w))
        phi = tl.where((phi != phi) | (phi == float("inf")), 0.0, phi)
        loss = -phi * advantage * logp
        by_logp = -phi * advantage
    else:
        free = ratio
        if DELTA:
            free = tl.where(ratio > delta, delta, ratio)
        a = free * advantage
        b = _clamp(ratio, clip_low, clip_high) * advantage
        loss = -tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
        share_a = tl.where(a == b, 0.5, tl.where(a > b, 0.0, 1.0))
        share_b = tl.where(a == b, 0.5, tl.where(b > a, 0.0, 1.0))
        share_b = tl.where((ratio < clip_low) | (ratio > clip_high), 0.0, share_b)
        if DELTA:
            share_a = tl.where(ratio > delta, 0.0, share_a)
        by_ratio = -advantage * (share_a + share_b)
    loss *= factor
    by_ratio *= factor
    by_logp *= factor
    if KL:
        gap = ref_logp - logp
        grown = tl.exp(gap)
        kl = grown - gap - 1.0
        slope = 1.0 - grown
        if BIAS_CORRECTION:
            by_ratio += beta * kl
            kl *= ratio
            slope *= ratio
        by_logp += beta * slope
        loss += beta * kl
    return loss, by_ratio, by_logp, kl, phi


@triton.jit(do_not_specialize=[*_POINTERS, *_SCALARS])
def _policy_loss_kernel(
    logps,  # [N] fp32
    advantages,  # [N] fp32
    weights,  # [N] fp32
    lengths,  # [S] int64
    ends,  # [S] int64: cumulated lengths
    tokens,  # [S] fp32
    old,  # [N] fp32, read with OLD
    ref,  # [N] fp32, read with KL
    sampler,  # [N] fp32, read with SAMPLER or OFF_POLICY_SAMPLER
    keep,  # [N] fp32, read with KEEP
    loss,  # [N] fp32, as all that follow
    grad,
    ratio,
    kl,
    phi,
    correction,
    clip_low,
    clip_high,
    delta,
    beta,
    threshold,
    cut_low,
    cut_high,
    k_pos,  # sapo: the temperature, vespo: k
    k_neg,
    lam_pos,
    lam_neg,
    LOSS: tl.constexpr,
    SEQUENCE_RATIO: tl.constexpr,
    OLD: tl.constexpr,
    DELTA: tl.constexpr,
    KL: tl.constexpr,
    BIAS_CORRECTION: tl.constexpr,
    SAMPLER: tl.constexpr,  # "none", "token" or "sequence"
    TRUNCATE: tl.constexpr,
    OFF_POLICY: tl.constexpr,
    OFF_POLICY_SAMPLER: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    stop = tl.load(ends + sequence)
    length = tl.load(lengths + sequence)
    start = stop - length
    count = tl.load(tokens + sequence)

    log_ratio_sum, clamped_sum, gap_sum, log_correction_sum, forward_kl_sum = 0.0, 0.0, 0.0, 0.0, 0.0
    if SEQUENCE_RATIO or LOSS == "vespo" or OFF_POLICY or SAMPLER == "sequence":
        for first in range(start, stop, BLOCK):
            at = first + lanes
            here = at < stop
            new_lp = tl.load(logps + at, mask=here, other=0.0)
            old_lp = tl.load(old + at, mask=here, other=0.0) if OLD else new_lp
            log_ratio = new_lp - old_lp
            log_ratio_sum += tl.sum(log_ratio, 0)
            if LOSS == "vespo":
                clamped_sum += tl.sum(_clamp(log_ratio, -_VESPO_CEIL, _VESPO_CEIL), 0)
            if SAMPLER != "none":
                gap = _finite_gap(old_lp, tl.load(sampler + at, mask=here, other=0.0))
                gap_sum += tl.sum(gap, 0)
                if LOSS == "vespo" and SAMPLER == "token":
                    logs = _log_corrected(_corrected(gap, cut_low, cut_high, TRUNCATE))
                    log_correction_sum += tl.sum(tl.where(here, logs, 0.0), 0)
            if OFF_POLICY:
                behind = tl.load(sampler + at, mask=here, other=0.0) if OFF_POLICY_SAMPLER else old_lp
                forward_kl_sum += tl.sum(_finite_gap(behind, new_lp), 0)
    sequence_ratio = tl.exp(log_ratio_sum / count)
    near = tl.where(forward_kl_sum / count <= threshold, 1.0, 0.0)
    sequence_correction = 1.0
    if SAMPLER == "sequence":
        sequence_correction = _corrected(gap_sum, cut_low, cut_high, TRUNCATE)
        log_correction_sum = _log_corrected(sequence_correction) * length
    sequence_log_w = _clamp(clamped_sum + log_correction_sum, _VESPO_FLOOR, _VESPO_CEIL)

    by_ratio_sum = 0.0
    # With SEQUENCE_RATIO a first round sums dL/dratio and a second one writes; otherwise one round writes.
    for rounds in tl.static_range(2 if SEQUENCE_RATIO else 1):
        for first in range(start, stop, BLOCK):
            at = first + lanes
            here = at < stop
            new_lp = tl.load(logps + at, mask=here, other=0.0)
            old_lp = tl.load(old + at, mask=here, other=0.0) if OLD else new_lp
            advantage = tl.load(advantages + at, mask=here, other=0.0)
            ref_lp = tl.load(ref + at, mask=here, other=0.0) if KL else new_lp
            row_weight = tl.load(weights + at, mask=here, other=0.0)
            row_correction = tl.full([BLOCK], 1.0, tl.float32) * sequence_correction
            if SAMPLER == "token":
                gap = _finite_gap(old_lp, tl.load(sampler + at, mask=here, other=0.0))
                row_correction = _corrected(gap, cut_low, cut_high, TRUNCATE)
            factor = tl.full([BLOCK], 1.0, tl.float32)
            if OFF_POLICY:
                factor = tl.where(advantage >= 0, 1.0, near)
            if KEEP:
                factor *= tl.load(keep + at, mask=here, other=0.0)
            if LOSS != "vespo":
                factor *= row_correction
            if SEQUENCE_RATIO:
                row_ratio = tl.full([BLOCK], 1.0, tl.float32) * sequence_ratio
            else:
                row_ratio = tl.exp(new_lp - old_lp)
            row_loss, by_ratio, by_logp, row_kl, row_phi = _terms(
                new_lp, row_ratio, advantage, ref_lp, factor, sequence_log_w, clip_low, clip_high, delta, beta,
                k_pos, k_neg, lam_pos, lam_neg, LOSS, DELTA, KL, BIAS_CORRECTION,
            )  # fmt: skip
            if SEQUENCE_RATIO and rounds == 0:
                by_ratio_sum += tl.sum(tl.where(here, by_ratio * row_weight, 0.0), 0)
            else:
                if SEQUENCE_RATIO:
                    through_ratio = row_ratio * by_ratio_sum / count
                else:
                    through_ratio = row_ratio * by_ratio * row_weight
                tl.store(loss + at, row_loss * row_weight, mask=here)
                tl.store(grad + at, through_ratio + by_logp * row_weight, mask=here)
                tl.store(ratio + at, row_ratio, mask=here)
                tl.store(kl + at, row_kl, mask=here)
                tl.store(phi + at, row_phi, mask=here)
                tl.store(correction + at, row_correction, mask=here)


def policy_loss(options: LossOptions, logps: Tensor, rows: PolicyRows) -> PolicyTerms:
    """What ops/policy_loss.py defines, for log-probs [N] fp32."""
    o = options
    if o.beta != 0.0 and rows.ref_logps is None:
        raise ValueError(f"beta is {o.beta}: ref_logps are needed")
    per_row = {"advantages": rows.advantages, "weights": rows.weights, "old_logps": rows.old_logps}
    per_row |= {"ref_logps": rows.ref_logps, "sampler_logps": rows.sampler_logps, "keep": rows.keep}
    for name, t in (("logps", logps), *per_row.items()):
        if t is not None and (t.shape != logps.shape or t.ndim != 1 or t.device != logps.device):
            raise ValueError(
                f"policy_loss: {name} must be {tuple(logps.shape)} on {logps.device}, got {tuple(t.shape)}"
            )
    if rows.tokens.shape != rows.lengths.shape:
        raise ValueError(
            f"policy_loss: tokens {tuple(rows.tokens.shape)} must match lengths {tuple(rows.lengths.shape)}"
        )

    logps = logps.detach().float().contiguous()
    terms = PolicyTerms(*(torch.empty_like(logps) for _ in PolicyTerms._fields))
    if len(logps) == 0:
        return terms

    def given(x: Tensor | None) -> Tensor:
        return logps if x is None else x.float().contiguous()

    sampled = rows.sampler_logps is not None and o.importance_sampling_correction
    mode, _, kind = o.importance_sampling_mode.partition("_")
    low, high = o.importance_sampling_clip_min, o.importance_sampling_clip_max
    lengths = rows.lengths.to(torch.int64).contiguous()
    sapo = o.loss_type == "sapo"
    launch_for(logps.device)
    with on(logps.device):
        _policy_loss_kernel[(len(lengths),)](
            logps, given(rows.advantages), given(rows.weights), lengths, lengths.cumsum(0), given(rows.tokens),
            given(rows.old_logps), given(rows.ref_logps), given(rows.sampler_logps), given(rows.keep), *terms,
            o.clip_low, o.resolved_epsilon_high if o.loss_type == "cispo" else o.clip_high, o.delta or 0.0, o.beta,
            o.off_policy_mask_threshold or 0.0, -math.inf if low is None else low, math.inf if high is None else high,
            o.sapo_temperature_pos if sapo else o.vespo_k_pos, o.sapo_temperature_neg if sapo else o.vespo_k_neg,
            o.vespo_lambda_pos, o.vespo_lambda_neg,
            LOSS="clipped" if o.loss_type in CLIPPED else o.loss_type,
            SEQUENCE_RATIO=o.importance_sampling_level == "sequence", OLD=rows.old_logps is not None,
            DELTA=o.delta is not None, KL=o.beta != 0.0, BIAS_CORRECTION=o.use_bias_correction_kl,
            SAMPLER=mode if sampled else "none", TRUNCATE=kind == "truncate",
            OFF_POLICY=o.off_policy_mask_threshold is not None, OFF_POLICY_SAMPLER=rows.sampler_logps is not None,
            KEEP=rows.keep is not None, BLOCK=_BLOCK, **FUSED,
        )  # fmt: skip
    return terms
