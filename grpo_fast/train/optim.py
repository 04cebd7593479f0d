"""The optimizer over what is trained, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from grpo_fast.errors import BadSettings
from grpo_fast.train.settings import OptimSettings


def build_optimizer(policy: nn.Module, settings: OptimSettings, learning_rate: float) -> torch.optim.Optimizer:
    """Matrices decay, biases and norms do not."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not trained:
        raise BadSettings("nothing is trained: every weight is frozen")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
    }
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=trained[0].device.type == "cuda", **options)
    return eight_bit()(groups, **options)


def eight_bit() -> Any:
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit
    except ImportError:
        pass
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit
    except ImportError:
        raise BadSettings("optimizer adamw_8bit needs torchao or bitsandbytes: pip install torchao") from None


def rate(step: int, steps: int, settings: OptimSettings, learning_rate: float) -> float:
    """Of the update that makes `step` of `steps` steps; the first is 1."""
    warmup = settings.lr_warmup * steps if settings.lr_warmup < 1 else settings.lr_warmup
    if step <= warmup:
        return learning_rate * step / warmup
    done = (step - 1 - warmup) / max(steps - warmup, 1)
    fall = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))}
    return learning_rate * (settings.lr_floor + (1.0 - settings.lr_floor) * fall[settings.lr_schedule])


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def clip(parameters: Iterable[Tensor], limit: float) -> float:
    """Scales gradients down to the norm `limit` (0: never) and gives the norm they had, over all ranks' shards."""
    norm = nn.utils.clip_grad_norm_(list(parameters), limit if limit > 0 else math.inf)
    full = getattr(norm, "full_tensor", None)
    return float(norm if full is None else full())
