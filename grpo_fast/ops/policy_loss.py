"""The policy loss of every row and its derivative with respect to the row's log-prob.

`policy_rows` is the definition, in differentiable torch; the Triton kernel computes the same in one launch.
All options are TRL's; `LossOptions` documents them. Suffixes: N scored rows, S sequences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grpo_fast.config import LossOptions
from grpo_fast.types import PolicyRows, PolicyTerms

VESPO_FLOOR = math.log(1e-8)
VESPO_CEIL = 20.0


def couples_sequences(options: LossOptions, on_policy: bool, sampled: bool, per_token_advantages: bool) -> bool:
    """Whether a row's gradient needs the log-probs of its whole sequence.

    On policy every ratio is exactly 1, and a sequence's ratio then has the same gradient as its tokens' ratios,
    unless advantages or the entropy quantile's choice differ within it, or the bias-corrected KL brings its rows' in.
    """
    o = options
    level = o.importance_sampling_level == "sequence"
    if on_policy and not sampled:
        uneven = per_token_advantages or o.top_entropy_quantile < 1.0
        return level and (uneven or (o.beta != 0.0 and o.use_bias_correction_kl))
    by_sequence = sampled and o.importance_sampling_correction and o.importance_sampling_mode.startswith("sequence")
    return level or o.loss_type == "vespo" or o.off_policy_mask_threshold is not None or by_sequence


def policy_loss(options: LossOptions, logps: Tensor, rows: PolicyRows, backend: str = "torch") -> PolicyTerms:
    """Loss, gradient and what the metrics need, for log-probs [N] that carry no graph."""
    if backend == "triton":
        from grpo_fast.kernels import policy_loss as kernel

        return kernel.policy_loss(options, logps, rows)
    o, (terms, factor) = options, policy_rows(options, logps, rows)
    advantages, ratio = rows.advantages, terms.ratio
    through_ratio, direct = torch.zeros_like(logps), torch.zeros_like(logps)
    if o.loss_type == "cispo":
        direct = -ratio.clamp(max=o.resolved_epsilon_high) * advantages
    elif o.loss_type == "vespo":
        direct = -terms.phi * advantages
    elif o.loss_type == "sapo":
        gate = torch.sigmoid(_sapo_steepness(o, advantages) * (ratio - 1))
        through_ratio = -4 * gate * (1 - gate) * advantages
    else:
        through_ratio = _clipped_slope(o, ratio, advantages)
    through_ratio, direct = through_ratio * factor, direct * factor
    if o.beta != 0.0:
        gap = _reference_gap(o, logps, rows)
        slope = -torch.expm1(gap)
        if o.use_bias_correction_kl:
            through_ratio = through_ratio + o.beta * (gap.exp() - gap - 1)
            slope = slope * ratio
        direct = direct + o.beta * slope
    through = through_ratio * ratio * rows.weights
    if o.importance_sampling_level == "sequence":
        through = _to_rows(_sequence_sum(through, rows) / rows.tokens, rows)
    return terms._replace(grad=direct * rows.weights + through)


def policy_rows(options: LossOptions, logps: Tensor, rows: PolicyRows) -> tuple[PolicyTerms, Tensor]:
    """The definition: `loss` is differentiable in `logps` [N], the other terms are detached, `grad` is empty.

    Beside the terms, what masks and corrections together multiply the policy part of the loss with, [N].
    """
    o, advantages, fixed = options, rows.advantages, logps.detach()
    old = fixed if rows.old_logps is None else rows.old_logps
    log_ratio = logps - old
    if o.importance_sampling_level == "sequence":
        log_ratio_used = _to_rows(_sequence_sum(log_ratio, rows) / rows.tokens, rows)
    else:
        log_ratio_used = log_ratio
    ratio = log_ratio_used.exp()
    correction, correction_log = _sampler_correction(o, old, rows)

    phi = torch.zeros_like(fixed)
    if o.loss_type == "cispo":
        loss = -ratio.clamp(max=o.resolved_epsilon_high).detach() * advantages * logps
    elif o.loss_type == "sapo":
        steep = _sapo_steepness(o, advantages)
        loss = -torch.sigmoid(steep * (ratio - 1)) * 4 / steep * advantages
    elif o.loss_type == "vespo":
        phi = _vespo_phi(o, log_ratio.detach(), correction_log, rows)
        loss = -phi * advantages * logps
    else:
        free = ratio if o.delta is None else ratio.clamp(max=o.delta)
        loss = -torch.min(free * advantages, ratio.clamp(o.clip_low, o.clip_high) * advantages)

    factor = torch.ones_like(fixed)
    if o.off_policy_mask_threshold is not None:
        factor = factor * _off_policy_keep(o.off_policy_mask_threshold, fixed, old, rows)
    if rows.keep is not None:
        factor = factor * rows.keep
    if o.loss_type != "vespo":
        factor = factor * correction
    loss, kl = loss * factor, torch.zeros_like(fixed)
    if o.beta != 0.0:
        gap = _reference_gap(o, logps, rows)
        kl = gap.exp() - gap - 1
        if o.use_bias_correction_kl:
            kl = kl * ratio
        loss = loss + o.beta * kl
    terms = PolicyTerms(loss * rows.weights, fixed.new_empty(0), ratio.detach(), kl.detach(), phi, correction)
    return terms, factor


def _reference_gap(o: LossOptions, logps: Tensor, rows: PolicyRows) -> Tensor:
    if rows.ref_logps is None:
        raise ValueError(f"beta is {o.beta}: ref_logps are needed")
    return rows.ref_logps - logps


def _either(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """torch.where of two numbers, which by itself would round them to torch's default dtype."""
    return torch.where(condition, torch.full_like(like, yes), no)


def _sapo_steepness(o: LossOptions, advantages: Tensor) -> Tensor:
    return _either(advantages > 0, o.sapo_temperature_pos, o.sapo_temperature_neg, advantages)


def _clipped_slope(o: LossOptions, ratio: Tensor, advantages: Tensor) -> Tensor:
    """d loss / d ratio of the clipped losses; where both branches are equal each has half, as torch.min gives it."""
    free = ratio if o.delta is None else ratio.clamp(max=o.delta)
    clipped = ratio.clamp(o.clip_low, o.clip_high)
    moves_free = torch.ones_like(ratio) if o.delta is None else (ratio <= o.delta).to(ratio.dtype)
    moves_clipped = ((ratio >= o.clip_low) & (ratio <= o.clip_high)).to(ratio.dtype)
    a, b = free * advantages, clipped * advantages
    share = torch.where(a < b, moves_free, torch.where(a > b, moves_clipped, (moves_free + moves_clipped) / 2))
    return -advantages * share


def _sequence_sum(x: Tensor, rows: PolicyRows) -> Tensor:
    return torch.segment_reduce(x, "sum", lengths=rows.lengths, unsafe=True)


def _to_rows(x: Tensor, rows: PolicyRows) -> Tensor:
    return x.repeat_interleave(rows.lengths, output_size=len(rows.weights))


def _sampler_correction(o: LossOptions, old: Tensor, rows: PolicyRows) -> tuple[Tensor, Tensor | None]:
    """The ratio of the old policy to the sampler, [N], and for vespo its clamped logarithm."""
    if rows.sampler_logps is None or not o.importance_sampling_correction:
        return torch.ones_like(old), None
    gap = torch.nan_to_num(old - rows.sampler_logps, nan=0.0)  # a token without a sampler log-prob is not corrected
    if o.importance_sampling_mode.startswith("sequence"):
        gap = _to_rows(_sequence_sum(gap, rows), rows)
    ratio = gap.exp()
    low, high = o.importance_sampling_clip_min, o.importance_sampling_clip_max
    if o.importance_sampling_mode.endswith("truncate"):
        if low is not None or high is not None:
            ratio = ratio.clamp(min=low, max=high)
    else:
        outside = (ratio < (-math.inf if low is None else low)) | (ratio > (math.inf if high is None else high))
        ratio = ratio.masked_fill(outside, 0.0)
    return ratio, ratio.log().clamp(VESPO_FLOOR, VESPO_CEIL)


def _off_policy_keep(threshold: float, logps: Tensor, old: Tensor, rows: PolicyRows) -> Tensor:
    """1 where the advantage is not negative or the sequence's mean forward KL is small enough."""
    sampler = old if rows.sampler_logps is None else rows.sampler_logps
    gap = torch.nan_to_num(sampler - logps, nan=0.0)
    near = _sequence_sum(gap, rows) / rows.tokens <= threshold
    return ((rows.advantages >= 0) | _to_rows(near, rows)).to(logps.dtype)


def _vespo_phi(o: LossOptions, log_ratio: Tensor, correction_log: Tensor | None, rows: PolicyRows) -> Tensor:
    """e^λ · w^k · e^(−λw), w the sequence's ratio; 1 at w = 1."""
    total = _sequence_sum(log_ratio.clamp(-VESPO_CEIL, VESPO_CEIL), rows)
    if correction_log is not None:
        total = total + _sequence_sum(correction_log, rows)
    log_w = _to_rows(total.clamp(VESPO_FLOOR, VESPO_CEIL), rows)
    positive = rows.advantages >= 0
    k = _either(positive, o.vespo_k_pos, o.vespo_k_neg, log_ratio)
    lam = _either(positive, o.vespo_lambda_pos, o.vespo_lambda_neg, log_ratio).clamp(min=1e-4)
    return (lam + k * log_w - lam * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
