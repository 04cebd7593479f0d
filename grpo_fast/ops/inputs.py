"""What every call of the head is checked for, once, before anything runs."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

Lora: TypeAlias = tuple[Tensor, Tensor, float]  # A [r, H], B [V, r], scale: logits gain scale * B A h
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def shape(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}".replace("torch.", "") if isinstance(x, Tensor) else repr(x)


def is_floating(name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating tensor (fp64, fp32, bf16 or fp16), got {shape(x)}")


def same_device(name: str, x: Tensor, hidden: Tensor) -> None:
    if x.device != hidden.device:
        raise ValueError(f"{name} is on {x.device}, hidden on {hidden.device}: move one of them")


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's where it is on, else that of the hidden states."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def wanted_grads(*inputs: Tensor | None) -> list[bool]:
    """For which of these autograd waits."""
    return [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]


def check_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lora: Lora | None,
    temperature: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    """Hidden rows [M, H], targets [M] int64 (below 0: not scored) and the parts of `lora`."""
    is_floating("hidden", hidden)
    is_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must be [V, H], got {shape(weight)}")
    v, h = weight.shape
    if hidden.dim() < 1 or hidden.shape[-1] != h:
        raise ValueError(f"hidden must end in the weight's H = {h}, got {shape(hidden)} with weight {shape(weight)}")
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be an integer tensor, got {shape(targets)}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets must be {list(hidden.shape[:-1])} (one per hidden state), got {shape(targets)}")
    same_device("weight", weight, hidden)
    same_device("targets", targets, hidden)
    if (weight.dtype == torch.float64) != (hidden.dtype == torch.float64):
        raise TypeError(f"fp64 needs hidden and weight in fp64, got hidden {shape(hidden)} and weight {shape(weight)}")
    if bias is not None:
        is_floating("bias", bias)
        same_device("bias", bias, hidden)
        if bias.shape != (v,):
            raise ValueError(f"bias must be [{v}], got {shape(bias)}")
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    lora_a, lora_b, lora_scale = _check_lora(lora, v, h, hidden)
    return hidden.reshape(-1, h), targets.reshape(-1).long(), lora_a, lora_b, lora_scale


def _check_lora(lora: Lora | None, v: int, h: int, hidden: Tensor) -> tuple[Tensor | None, Tensor | None, float]:
    if lora is None:
        return None, None, 1.0
    if not isinstance(lora, tuple) or len(lora) != 3:
        raise TypeError("lora must be (A [r, H], B [V, r], scale)")
    a, b, scale = lora
    for name, x in (("lora A", a), ("lora B", b)):
        is_floating(name, x)
        same_device(name, x, hidden)
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != h or b.shape[0] != v or a.shape[0] != b.shape[1]:
        raise ValueError(f"lora must be A [r, {h}] and B [{v}, r] of one rank r, got {shape(a)} and {shape(b)}")
    return a, b, float(scale)


def refuse_outside(targets: Tensor, v: int, low: int | None = None, mask: Tensor | None = None) -> None:
    """Targets that count must lie in [low, V). On a device that would need a sync: there such a row gives NaN."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bad = targets >= v if low is None else (targets >= v) | (targets < low)
    if mask is not None:
        bad &= mask.to(targets.device) != 0
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"targets{list(at)} is {int(targets[at])}, outside the vocabulary of {v}")
