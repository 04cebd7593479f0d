"""The loss over full logits in plain torch, written out for two normalisers: the truth of these tests, in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rollout:
    """A padded batch with ragged completions; everything that GRPOLoss takes."""

    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [B, T]
    advantages: Tensor  # [B]
    mask: Tensor  # [B, T] bool
    old_logps: Tensor  # [B, T]
    ref_logps: Tensor  # [B, T]

    def to(self, dtype: torch.dtype) -> Rollout:
        return Rollout(
            self.hidden.to(dtype), self.weight.to(dtype), self.targets, self.advantages, self.mask, self.old_logps,
            self.ref_logps,
        )  # fmt: skip


def rollout(
    lengths: tuple[int, ...] = (5, 3, 6, 1), h: int = 16, v: int = 37, seed: int = 0, drift: float = 0.3
) -> Rollout:
    """Hidden states and weights hold bf16-exact values, so that every dtype sees the same numbers."""
    gen = torch.Generator().manual_seed(seed)
    b, t = len(lengths), max(lengths)
    hidden = torch.randn(b, t, h, generator=gen).bfloat16().float()
    weight = (torch.randn(v, h, generator=gen) * 2 / math.sqrt(h)).bfloat16().float()
    targets = torch.randint(v, (b, t), generator=gen)
    logps = full_logps(hidden.double(), weight.double(), targets).float()
    old = logps + drift * torch.randn(b, t, generator=gen)
    ref = logps + 0.3 * torch.randn(b, t, generator=gen)
    advantages = torch.randn(b, generator=gen) + 0.2
    return Rollout(hidden, weight, targets, advantages, torch.arange(t) < torch.tensor(lengths)[:, None], old, ref)


def full_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    if lora is not None:
        a, b, scale = lora
        weight = weight + scale * b @ a
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits / temperature).log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def eager_loss(
    r: Rollout,
    logps: Tensor,
    *,
    loss_type: str = "grpo",
    beta: float = 0.0,
    epsilon: float = 0.2,
) -> Tensor:
    """`grpo` (mean over each completion, then over the batch) or `dapo` (mean over all tokens)."""
    ratio = (logps - r.old_logps).exp()
    advantages = r.advantages[:, None]
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    if beta:
        gap = r.ref_logps - logps
        loss = loss + beta * (gap.exp() - gap - 1) * ratio
    loss = torch.where(r.mask, loss, 0.0)
    if loss_type == "grpo":
        return (loss.sum(1) / r.mask.sum(1).clamp(min=1)).mean()
    return loss.sum() / r.mask.sum().clamp(min=1)
