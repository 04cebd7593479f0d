"""One vector of what happened in a micro-batch: sums, then minima, then maxima (types.Metrics).

Clip counts and lengths cover every token that counts: rows left out have zero advantage and are never clipped.
KL, entropy and ratios cover the rows that were scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_fast.config import CLIPPED, LossOptions
from grpo_fast.ops.scored_rows import ScoredRows
from grpo_fast.types import MAXIMA, MINIMA, SUMS, PolicyRows, PolicyTerms


def metrics_vector(
    options: LossOptions, loss: Tensor, terms: PolicyTerms, entropy: Tensor, rows: PolicyRows, scored: ScoredRows
) -> Tensor:
    """[len(SUMS) + len(MINIMA) + len(MAXIMA)] fp32, without a host sync."""
    live = torch.ones_like(entropy, dtype=torch.bool) if scored.mask is None else scored.mask
    advantages, ratio, zero = rows.advantages, terms.ratio, entropy.new_zeros(())
    low = high = torch.zeros_like(live)
    if options.loss_type in CLIPPED:
        capped = ratio if options.delta is None else ratio.clamp(max=options.delta)
        low = (capped < options.clip_low) & (advantages < 0)
        high = (capped > options.clip_high) & (advantages > 0)
    elif options.loss_type == "cispo":
        high = (ratio > options.resolved_epsilon_high) & (advantages > 0)
    active = live.float() if rows.keep is None else live.float() * rows.keep
    low_share, high_share = (_per_sequence(flag & live, scored) / scored.tokens.clamp(min=1) for flag in (low, high))
    counted = _per_sequence(live, scored)
    low_min = low_share
    if options.importance_sampling_level == "token":  # a sequence without tokens has no share; by sequence it has 0
        low_min = torch.where(scored.tokens > 0, low_share, float("inf"))
    phi_mean = _per_sequence(torch.where(live, terms.phi, zero), scored) / counted.clamp(min=1)

    def total(x: Tensor) -> Tensor:
        return torch.where(live, x.float(), zero).sum()

    def extreme(x: Tensor, fill: float) -> Tensor:
        return torch.cat([torch.where(live, x.float(), fill), entropy.new_full((1,), fill).float()])

    sums = {
        "loss": loss,
        "sequences": zero + len(scored.tokens),
        "tokens": scored.tokens.sum(),
        "scored_tokens": live.sum(),
        "kl": total(terms.kl),
        "entropy": total(entropy),
        "active_entropy": (torch.where(live, entropy, zero) * active).sum(),
        "active_tokens": active.sum(),
        "ratio": total(ratio),
        "clip_low": total(low),
        "clip_high": total(high),
        "clip_low_sequences": low_share.sum(),
        "clip_high_sequences": high_share.sum(),
        "phi": total(terms.phi),
        "phi_sequences": phi_mean.sum(),
        "scored_sequences": (counted > 0).sum(),
        "sampler_correction": total(terms.correction),
    }
    minima = {
        "ratio_min": extreme(ratio, float("inf")).amin(),
        "clip_low_min": torch.cat([low_min, low_share.new_full((1,), float("inf"))]).amin(),
        "sampler_correction_min": extreme(terms.correction, float("inf")).amin(),
    }
    maxima = {
        "ratio_max": extreme(ratio, float("-inf")).amax(),
        "clip_high_max": torch.cat([high_share, high_share.new_full((1,), float("-inf"))]).amax(),
        "sampler_correction_max": extreme(terms.correction, float("-inf")).amax(),
    }
    return torch.stack(
        [sums[name].float() for name in SUMS] + [minima[name] for name in MINIMA] + [maxima[name] for name in MAXIMA]
    )


def _per_sequence(x: Tensor, scored: ScoredRows) -> Tensor:
    return torch.segment_reduce(x.float(), "sum", lengths=scored.lengths, unsafe=True)
