"""What is measured: the shapes, the inputs, and the fp64 result that every implementation is held against.

Suffixes: B sequences, T positions of each, N scored rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EPSILON = 0.2
_CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}

Head = Literal["trained", "frozen", "no_grad"]
Policy = Literal["on", "off"]
Layout = Literal["compact", "padded", "half_zero"]


@dataclass(frozen=True, slots=True)
class Case:
    rows: int
    hidden: int
    vocab: int
    dtype: torch.dtype = torch.float32
    head: Head = "trained"
    policy: Policy = "off"
    layout: Layout = "compact"  # padded: 2N positions of which N are scored; half_zero: half the advantages are 0
    timed: bool = True
    seed: int = 0

    @property
    def gemms(self) -> int:
        return {"trained": 3, "frozen": 2, "no_grad": 1}[self.head]

    @property
    def flops(self) -> int:
        return self.gemms * 2 * self.rows * self.hidden * self.vocab

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def as_dict(self) -> dict[str, str | int]:
        return {
            "rows": self.rows,
            "hidden": self.hidden,
            "vocab": self.vocab,
            "dtype": self.dtype_name,
            "head": self.head,
            "policy": self.policy,
            "layout": self.layout,
        }

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.as_dict().items())


@dataclass(frozen=True, slots=True)
class Inputs:
    hidden: Tensor  # [B, T, H], a leaf
    weight: Tensor  # [V, H], a leaf
    targets: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool, on the device
    mask_cpu: Tensor  # the same on the CPU: host-side row selection costs no sync
    advantages: Tensor  # [B] fp32, on the device
    advantages_cpu: Tensor
    old_logps: Tensor | None  # [B, T] fp32; None on policy
    rows: Tensor  # [N] int64, flat indices of the scored positions
    count: int  # N


@dataclass(frozen=True, slots=True)
class Result:
    logps: Tensor  # [N]
    grad_hidden: Tensor  # [N, H]
    grad_weight: Tensor  # [V, H]


def make_inputs(case: Case, device: torch.device, *, realistic: bool = True) -> Inputs:
    """Hidden states aligned with a random winning token, so that logits are as peaked as a language model's, and
    targets sampled from them. `realistic=False` skips the sampling, for measurements that do not read the values."""
    generator = torch.Generator(device).manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    sequences = math.gcd(case.rows, 8)
    length = case.rows // sequences
    positions = 2 * length if case.layout == "padded" else length
    weight = normal(case.vocab, case.hidden).div_(math.sqrt(case.hidden)).to(case.dtype)
    winners = torch.randint(case.vocab, (sequences * positions,), generator=generator, device=device)
    direction = torch.nn.functional.normalize(weight[winners].float(), dim=1)
    hidden = (3 * normal(sequences * positions, case.hidden) + 14 * direction).to(case.dtype)

    lengths = torch.full((sequences,), length)
    if case.layout == "padded":
        spread = torch.arange(1, sequences // 2 + 1) * (length - 1) // max(1, sequences // 2)
        lengths[: 2 * len(spread)] += torch.stack([spread, -spread], 1).flatten()
    mask_cpu = torch.arange(positions) < lengths[:, None]
    advantages = torch.tensor([(-1.0) ** b * (0.5 + b / sequences) for b in range(sequences)])
    if case.layout == "half_zero":
        advantages[: sequences // 2] = 0
    rows = mask_cpu.flatten().nonzero()[:, 0].to(device)

    if realistic:
        targets, logps = _sample(hidden, weight, generator)
    else:
        targets, logps = winners, torch.full(winners.shape, -5.0, device=device)
    old_logps = None
    if case.policy == "off":
        # log-ratios well inside or well outside the clip range: no implementation's rounding may flip a clip
        inside = torch.rand(logps.shape, generator=generator, device=device)
        log_ratio = torch.where(inside < 0.8, 0.2 * inside - 0.08, (20 * (inside - 0.9)).sign() * 0.4)
        old_logps = (logps - log_ratio).float().view(sequences, positions)
    return Inputs(
        hidden=hidden.view(sequences, positions, case.hidden).requires_grad_(case.head != "no_grad"),
        weight=weight.requires_grad_(case.head == "trained"),
        targets=targets.view(sequences, positions),
        mask=mask_cpu.to(device),
        mask_cpu=mask_cpu,
        advantages=advantages.to(device),
        advantages_cpu=advantages,
        old_logps=old_logps,
        rows=rows,
        count=case.rows,
    )


def policy_loss(logps: Tensor, inputs: Inputs) -> Tensor:
    """The token-level clipped loss over `logps [B, T]`, mean over the scored tokens (dapo and bnpo on one device)."""
    old_logps = logps.detach() if inputs.old_logps is None else inputs.old_logps
    ratio = torch.exp(logps - old_logps)
    advantages = inputs.advantages[:, None]
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantages)
    return -(objective * inputs.mask).sum() / inputs.count


def compute(inputs: Inputs, dtype: torch.dtype) -> Result:
    """Log-probs and gradients written out by hand: products in `dtype`, softmax in at least fp32.

    In fp64 it is the truth; in the inputs' dtype it makes the rounding errors that full logits in autograd make, at
    any number of rows.
    """
    wide = torch.promote_types(dtype, torch.float32)
    hidden = inputs.hidden.detach().flatten(0, 1)[inputs.rows].to(dtype)
    weight = inputs.weight.detach().to(dtype)
    targets = inputs.targets.flatten()[inputs.rows]
    advantages = inputs.advantages[:, None].expand(inputs.mask.shape).flatten()[inputs.rows].to(wide)
    old_logps = None if inputs.old_logps is None else inputs.old_logps.flatten()[inputs.rows].to(wide)

    logps = torch.empty(len(hidden), dtype=wide, device=hidden.device)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=wide)
    for chunk in _chunks(hidden, weight):
        log_probs = (hidden[chunk] @ weight.T).to(wide).log_softmax(-1)
        target = targets[chunk, None]
        logps[chunk] = log_probs.gather(1, target)[:, 0]
        coefficient = _policy_gradient(logps[chunk], None if old_logps is None else old_logps[chunk], advantages[chunk])
        coefficient = coefficient[:, None] / inputs.count
        grad_logits = log_probs.exp_().mul_(-coefficient).scatter_add_(1, target, coefficient).to(dtype)
        grad_hidden[chunk] = grad_logits @ weight
        grad_weight += grad_logits.T @ hidden[chunk]
    return Result(logps, grad_hidden, grad_weight)


def _policy_gradient(logps: Tensor, old_logps: Tensor | None, advantages: Tensor) -> Tensor:
    """dL/dlogp times the number of scored tokens."""
    if old_logps is None:
        return -advantages
    ratio = torch.exp(logps - old_logps)
    clipped = torch.where(advantages > 0, ratio > 1 + EPSILON, ratio < 1 - EPSILON)
    return torch.where(clipped, 0.0, -advantages * ratio)


def _sample(hidden: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    targets = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    logps = torch.empty(len(hidden), dtype=torch.float64, device=hidden.device)
    wide = weight.double()
    for chunk in _chunks(hidden, wide):
        log_probs = (hidden[chunk].double() @ wide.T).log_softmax(-1)
        targets[chunk] = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
        logps[chunk] = log_probs.gather(1, targets[chunk, None])[:, 0]
    return targets, logps


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES[hidden.device.type] // (weight.shape[0] * 8))
    return (slice(start, min(start + step, len(hidden))) for start in range(0, len(hidden), step))
