"""Prompts of different lengths in one packed forward: each once, whatever the number of its completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_fast.policy.attention import segment_attention
from grpo_fast.policy.checks import PromptSpec, placeholder_rows
from grpo_fast.policy.plan import plan_of
from grpo_fast.rollout.attention import run_layers
from grpo_fast.rollout.cache import GroupCache
from grpo_fast.types import AttentionPlan, Prompt, VisionFeatures, VisionInput

LEAST_ROWS = 16  # below that a CPU product's bits depend on the number of its rows

ImageKey = tuple[str, tuple[int, int, int]]  # one colour has the same patches, and so the same digest, under any grid


def pad_rows(x: Tensor) -> Tensor:
    """[…, rows, columns] with rows of zeros up to LEAST_ROWS."""
    missing = LEAST_ROWS - x.shape[-2]
    return F.pad(x, (0, 0, 0, missing)) if missing > 0 else x


def image_key(one: VisionInput) -> ImageKey:
    return one.key, one.grid


def prefill(
    language_model: Any,
    spec: PromptSpec,
    prompts: Sequence[Prompt],
    caches: Sequence[GroupCache],
    features: Mapping[ImageKey, VisionFeatures],
    backend: str,
) -> Tensor:
    """[prompts, H] the hidden state of each prompt's last token; its keys and values go to its cache."""
    device = language_model.embed_tokens.weight.device
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    spare = max(0, LEAST_ROWS - sum(lengths))
    ids = F.pad(torch.cat([prompt.input_ids for prompt in prompts]), (0, spare)).to(device)
    positions = F.pad(torch.cat([prompt.positions for prompt in prompts], 1), (0, spare)).to(device)
    embeds, extra = _with_vision(language_model.embed_tokens(ids), prompts, spec, features)

    segments = np.array(lengths + [spare] * (spare > 0))
    plan = plan_of(segments, segments)
    plan = AttentionPlan(plan.cu_q.to(device), plan.cu_k.to(device), plan.host_q, plan.host_k, plan.max_q, plan.max_k)
    hidden = run_layers(language_model, embeds, positions, PrefillStep(plan, caches, backend), **extra)
    last = torch.tensor(plan.host_q[1 : len(prompts) + 1]).to(device, non_blocking=True) - 1
    return hidden[last]


class PrefillStep:
    def __init__(self, plan: AttentionPlan, caches: Sequence[GroupCache], backend: str) -> None:
        self.plan, self.caches, self.backend = plan, caches, backend

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        bounds = self.plan.host_q
        for cache, start, end in zip(self.caches, bounds, bounds[1:], strict=False):
            cache.prefix_keys[layer][:, : end - start] = k[start:end].transpose(0, 1)
            cache.prefix_values[layer][:, : end - start] = v[start:end].transpose(0, 1)
        return segment_attention(q, k, v, self.plan, scale, self.backend)


def _with_vision(
    embeds: Tensor, prompts: Sequence[Prompt], spec: PromptSpec, features: Mapping[ImageKey, VisionFeatures]
) -> tuple[Tensor, dict[str, Any]]:
    """[T, H] embeddings with vision features in their places, and Qwen3-VL's later features."""
    rows, used, start = [], [], 0
    for prompt in prompts:
        for one, places in zip(prompt.vision, placeholder_rows(prompt, spec), strict=True):
            rows.append(places + start)
            used.append(features[image_key(one)])
        start += prompt.input_ids.numel()
    if not used:
        return embeds, {}
    where = torch.from_numpy(np.concatenate(rows))
    order = where.argsort().to(embeds.device)  # deepstack features go in by a mask, in the order of the rows
    where = where.to(embeds.device)[order]
    first, *later = (
        torch.cat(level)[order].to(embeds.dtype)
        for level in zip(*([one.embeds, *one.deepstack] for one in used), strict=True)
    )
    embeds = embeds.index_copy(0, where, first)
    if not later:
        return embeds, {}
    mask = torch.zeros(1, len(embeds), dtype=torch.bool, device=embeds.device)
    mask[:, where] = True
    return embeds, {"visual_pos_masks": mask, "deepstack_visual_embeds": later}
