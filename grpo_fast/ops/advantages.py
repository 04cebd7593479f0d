"""Group-normalised advantages: (reward - mean of its group) / (standard deviation + epsilon).

The deviation is unbiased, of the group or of the whole batch. A group of one and a group of equal rewards have
advantage exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from grpo_fast.config import RewardScale
from grpo_fast.ops.backends import choose
from grpo_fast.ops.inputs import shape


def group_advantages(
    rewards: Tensor,  # [N], or [N, K] for K reward functions
    group_sizes: int | Sequence[int] | Tensor,  # of every group, or of each; groups lie one after the other
    scale: RewardScale = "group",
    epsilon: float = 1e-4,
    weights: Sequence[float] | Tensor | None = None,  # [K], 1 each unless given
    backend: str = "auto",
) -> Tensor:
    """Advantages [N] in fp32 (fp64 for fp64 rewards)."""
    if not isinstance(rewards, Tensor) or rewards.dim() not in (1, 2) or rewards.is_complex():
        raise TypeError(f"rewards must be a real tensor [N] or [N, K], got {shape(rewards)}")
    if scale not in get_args(RewardScale):
        raise ValueError(f"scale must be one of {', '.join(get_args(RewardScale))}; got {scale!r}")
    if epsilon < 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    if rewards.device.type == "cpu":
        _refuse_nan(rewards)
    total = _weighted(rewards, weights)
    sizes = _sizes(group_sizes, len(rewards))
    if choose("group_advantages", rewards.device, total.dtype, backend) == "triton" and len(total):
        from grpo_fast.kernels.advantages import group_advantages as launch

        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).to(total.device, non_blocking=True)
        return launch(total, offsets, scale, epsilon)
    return _reference(total, sizes.to(total.device), scale, epsilon)


def _reference(rewards: Tensor, sizes: Tensor, scale: str, epsilon: float) -> Tensor:
    def per_group(x: Tensor, reduce: str) -> Tensor:
        return torch.segment_reduce(x, reduce, lengths=sizes, unsafe=True).repeat_interleave(sizes, output_size=len(x))

    if len(rewards) == 0:
        return rewards
    r = rewards.double()  # rewards are few; the mean of equal rewards is then exact enough to subtract to 0
    mean = per_group(r, "sum") / sizes.repeat_interleave(sizes, output_size=len(r))
    centred = torch.where(per_group(r, "max") == per_group(r, "min"), 0.0, r - mean)
    if scale == "group":
        count = sizes.repeat_interleave(sizes, output_size=len(r))
        centred /= (per_group(centred**2, "sum") / (count - 1).clamp(min=1)).sqrt() + epsilon
    elif scale == "batch":
        centred /= (r.std() if len(r) > 1 else 0.0) + epsilon
    return centred.to(rewards.dtype)


def _weighted(rewards: Tensor, weights: Sequence[float] | Tensor | None) -> Tensor:
    r = rewards if rewards.dtype == torch.float64 else rewards.float()
    if r.dim() == 1:
        if weights is not None:
            raise ValueError(f"weights are for rewards [N, K], one each; rewards are {shape(rewards)}")
        return r
    if weights is None:
        return r.sum(1)
    w = torch.as_tensor(weights, dtype=r.dtype, device=r.device)
    if w.shape != (r.shape[1],):
        raise ValueError(f"weights must be [{r.shape[1]}], one for each reward function, got {list(w.shape)}")
    return (r * w).sum(1)


def _sizes(group_sizes: int | Sequence[int] | Tensor, n: int) -> Tensor:
    if isinstance(group_sizes, int):
        if group_sizes < 1 or n % group_sizes:
            raise ValueError(f"group_sizes {group_sizes} does not divide {n} rewards into groups")
        return torch.full((n // group_sizes,), group_sizes)
    given = torch.as_tensor(group_sizes)
    if given.is_floating_point() and given.numel():
        raise TypeError(f"group_sizes must be integers, got {group_sizes!r}")
    sizes = given.long().cpu()
    if sizes.dim() == 0:  # numpy's or a tensor's integer
        return _sizes(int(sizes), n)
    if sizes.dim() != 1 or bool((sizes < 1).any()) or int(sizes.sum()) != n:
        raise ValueError(f"group_sizes must be positive and sum to the {n} rewards, got {sizes.tolist()}")
    return sizes


def _refuse_nan(rewards: Tensor) -> None:
    bad = (~torch.isfinite(rewards.double())).nonzero()
    if len(bad):
        at = tuple(bad[0].tolist())
        raise ValueError(f"rewards{list(at)} is {rewards[at].item()}: every reward must be finite")
