"""GRPO for vision-language models, with the loss fused into the language-model head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"
__all__ = ["GRPOLoss", "LossOutput", "Metrics", "group_advantages", "linear_logprobs"]

if TYPE_CHECKING:
    from grpo_fast.losses.grpo import GRPOLoss
    from grpo_fast.ops.advantages import group_advantages
    from grpo_fast.ops.linear_logprobs import linear_logprobs
    from grpo_fast.types import LossOutput, Metrics

_HOMES = {
    "GRPOLoss": "grpo_fast.losses.grpo",
    "LossOutput": "grpo_fast.types",
    "Metrics": "grpo_fast.types",
    "group_advantages": "grpo_fast.ops.advantages",
    "linear_logprobs": "grpo_fast.ops.linear_logprobs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'grpo_fast' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
