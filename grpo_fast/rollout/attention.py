"""Where a rollout's step meets the model: its attention, swapped in for as long as a rollout lasts.

The layers stay transformers' own, so adapters, hooks and sharding work as in training; a step only decides what the
rows of one forward attend to and where their keys and values are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

ATTENTION = "grpo_fast_rollout"


class Step(Protocol):
    def attend(
        self,
        layer: int,
        q: Tensor,  # [T, Hq, D]
        k: Tensor,  # [T, Hk, D]
        v: Tensor,  # [T, Hk, D]
        scale: float,
    ) -> Tensor: ...  # [T, Hq, D]


@contextmanager
def rollout_attention(language_model: Any) -> Iterator[None]:
    _register()
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def run_layers(language_model: Any, embeds: Tensor, positions: Tensor, step: Step, **extra: Any) -> Tensor:
    """[T, H] hidden states of rows [T, H] at M-RoPE positions [3, T]."""
    return language_model(
        inputs_embeds=embeds[None],
        position_ids=positions[:, None],
        attention_mask=_no_mask(language_model.config.model_type, embeds),
        use_cache=False,
        rollout_step=step,
        **extra,
    ).last_hidden_state[0]


def _no_mask(model_type: str, embeds: Tensor) -> Any:
    """What each text model takes as "the mask is already made"."""
    return embeds.new_zeros(1, 1, 1, 1) if model_type.startswith("qwen3_vl") else {"full_attention": None}


@lru_cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def _attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, Hq, T, D]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rollout_step: Step,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    # Under autocast the rotation leaves q and k in fp32 while v is already low precision.
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    return rollout_step.attend(layer, q.to(v.dtype), k.to(v.dtype), v, scale)[None], None
