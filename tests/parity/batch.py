"""One small padded batch as a trainer would hand it over, and the same rows packed.

Suffixes: B sequences, T tokens of the longest, N rows, H hidden, V vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

B, T, H, V = 6, 20, 24, 29
LENGTHS = (20, 1, 5, 16, 3, 18)  # chunks of 16 rows cut two of them, chunks of 32 none


@dataclass(frozen=True, slots=True)
class Batch:
    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [B, T] int64
    advantages: Tensor  # [B] or [B, T]
    completion_mask: Tensor  # [B, T] int64, contiguous from the left
    truncated: Tensor | None = None  # [B] bool, where mask_truncated_completions leaves whole completions out
    tool_mask: Tensor | None = None  # [B, T] int64, 0 where a tool wrote
    old_logps: Tensor | None = None  # [B, T]
    ref_logps: Tensor | None = None  # [B, T]
    sampler_logps: Tensor | None = None  # [B, T], NaN where the sampler has none

    @property
    def mask(self) -> Tensor:
        return self.completion_mask if self.tool_mask is None else self.completion_mask * self.tool_mask

    @property
    def scored(self) -> Tensor:
        """TRL's mask: truncated completions are already out of it."""
        return self.mask if self.truncated is None else self.mask * (~self.truncated)[:, None]

    @property
    def cu_seqlens(self) -> Tensor:
        lengths = self.completion_mask.sum(1)
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

    def pack(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else x[self.completion_mask.bool()]


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and entropies, in plain torch, in the dtype of `hidden`."""
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    return logp.gather(-1, targets[..., None])[..., 0], -(logp.exp() * logp).sum(-1)


def make_batch(
    *,
    seed: str,
    old: float = 0.0,
    ref: float = 0.0,
    sampler: float = 0.0,
    sampler_nan: bool = False,
    outliers: bool = False,
    token_advantages: bool = False,
    zero_advantages: bool = False,
    tool_holes: bool = False,
    truncated: tuple[int, ...] = (),
    temperature: float = 1.0,
) -> Batch:
    """`old`, `ref` and `sampler` are the standard deviations of their log-probabilities around the policy's; 0 leaves
    the tensor out; `truncated` are the rows that the limit cut."""
    gen = torch.Generator().manual_seed(zlib.crc32(seed.encode()))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen)

    hidden, weight = randn(B, T, H), randn(V, H) / H**0.5 * 1.5
    targets = torch.randint(V, (B, T), generator=gen)
    completion_mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    tool_mask = None
    if tool_holes:
        tool_mask = torch.ones(B, T, dtype=torch.long)
        tool_mask[0, 2:4] = 0
        tool_mask[3, 0] = 0
        tool_mask[4, :] = 0
    # of both signs, but mostly positive: the loss of a batch that cancels is what rounding leaves of it
    advantages = 0.5 * randn(B, T) + 0.8 if token_advantages else torch.tensor([1.3, -0.4, 0.9, -0.3, 0.8, 1.1])
    if zero_advantages:
        advantages[..., 2:4] = 0.0
    logps, _ = token_logps(hidden, weight, targets, temperature)

    def around(std: float) -> Tensor | None:
        return (logps + std * randn(B, T)).clamp(max=0.0) if std else None

    sampler_logps = around(sampler)
    if sampler_logps is not None and sampler_nan:
        sampler_logps[0, 1] = sampler_logps[3, 2] = sampler_logps[5, :] = float("nan")
    old_logps = around(old)
    if old_logps is not None and outliers:  # log-ratios beyond vespo's bounds of ±20, which nearly cancel
        old_logps[0, :2] = logps[0, :2] + torch.tensor([-30.0, 22.0])
    return Batch(
        hidden=hidden,
        weight=weight,
        targets=targets,
        advantages=advantages,
        completion_mask=completion_mask,
        truncated=torch.isin(torch.arange(B), torch.tensor(truncated)) if truncated else None,
        tool_mask=tool_mask,
        old_logps=old_logps,
        ref_logps=around(ref),
        sampler_logps=sampler_logps,
    )
