"""What must hold of a group before it is packed; each violation is named with its sample and its cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grpo_fast.errors import BadGroup, PromptMismatch
from grpo_fast.types import Group, Prompt, VisionInput

Ints = np.ndarray


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """What a model's config says of its prompts."""

    image_token_id: int
    video_token_id: int
    merge: int  # patches a side of one vision token
    patch_values: int  # numbers in one patch of pixels

    @classmethod
    def of(cls, config: Any) -> PromptSpec:
        vision = config.vision_config
        channels = getattr(vision, "in_channels", None) or vision.in_chans
        return cls(
            image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
            merge=vision.spatial_merge_size,
            patch_values=channels * vision.temporal_patch_size * vision.patch_size**2,
        )

    def tokens(self, vision: VisionInput) -> int:
        t, h, w = vision.grid
        return t * h * w // self.merge**2


def placeholder_rows(prompt: Prompt, spec: PromptSpec) -> list[Ints]:
    """For each vision input, the prompt rows its features go to. Only the prompt is searched: a sampled image token
    in a completion stays text."""
    ids = prompt.input_ids.numpy()
    left = {"image": np.flatnonzero(ids == spec.image_token_id), "video": np.flatnonzero(ids == spec.video_token_id)}
    rows = []
    for one in prompt.vision:
        count = spec.tokens(one)
        rows.append(left[one.kind][:count])
        left[one.kind] = left[one.kind][count:]
    return rows


def check_group(group: Group, spec: PromptSpec) -> None:
    name = _name(group.prompt)
    check_prompt(group.prompt, spec)
    if not group.completions:
        raise BadGroup(f"{name}: the group has no completions")
    for number, completion in enumerate(group.completions):
        if completion.numel() == 0:
            raise BadGroup(
                f"{name}: completion {number} is empty; keep the stop token as its one token, or leave it out"
            )
    for what in ("sampler_logps", "old_logps", "ref_logps"):
        logps = getattr(group, what)
        if logps is None:
            continue
        lengths, given = [c.numel() for c in group.completions], [x.numel() for x in logps]
        if lengths != given:
            raise BadGroup(f"{name}: {what} have lengths {given}, the completions {lengths}")
    if group.advantages is not None and group.advantages.shape != (len(group.completions),):
        raise BadGroup(
            f"{name}: {tuple(group.advantages.shape)} advantages for {len(group.completions)} completions; "
            "give one per completion"
        )


def check_prompt(prompt: Prompt, spec: PromptSpec) -> None:
    name, length = _name(prompt), prompt.input_ids.numel()
    if length == 0:
        raise PromptMismatch(f"{name}: the prompt is empty")
    if prompt.positions.shape != (3, length):
        raise PromptMismatch(f"{name}: positions are {tuple(prompt.positions.shape)}, need (3, {length})")
    for kind, token in (("image", spec.image_token_id), ("video", spec.video_token_id)):
        placeholders = int((prompt.input_ids == token).sum())
        expected = sum(spec.tokens(one) for one in prompt.vision if one.kind == kind)
        if placeholders != expected:
            raise PromptMismatch(
                f"{name}: {placeholders} {kind} placeholder tokens in the prompt, but its {kind} inputs make "
                f"{expected}; the prompt was expanded for other grids, or an input is missing"
            )
    for number, (one, rows) in enumerate(zip(prompt.vision, placeholder_rows(prompt, spec), strict=True)):
        _check_vision(f"{name}: vision input {number}", prompt, one, rows, spec)
    if prompt.features is not None and [f.embeds.shape[0] for f in prompt.features] != [
        spec.tokens(one) for one in prompt.vision
    ]:
        raise PromptMismatch(f"{name}: the cached features do not match the prompt's vision inputs; encode them again")


def _check_vision(name: str, prompt: Prompt, one: VisionInput, rows: Ints, spec: PromptSpec) -> None:
    t, h, w = one.grid
    if one.pixels.shape != (t * h * w, spec.patch_values):
        raise PromptMismatch(
            f"{name}: pixels are {tuple(one.pixels.shape)}, but grid {one.grid} needs {(t * h * w, spec.patch_values)}"
        )
    if min(t, h, w) < 1 or h % spec.merge or w % spec.merge:
        raise PromptMismatch(f"{name}: grid {one.grid} is not made of {spec.merge} x {spec.merge} merge blocks")
    ids = prompt.input_ids.numpy()
    token = ids[rows[0]]
    before, after = rows[0] - 1, rows[-1] + 1
    frame = rows[: h * w // spec.merge**2]
    across = prompt.positions[1:, torch.from_numpy(frame)]
    spans = tuple((across.amax(1) - across.amin(1) + 1).tolist())
    inside = (before >= 0 and ids[before] == token) or (after < len(ids) and ids[after] == token)
    if inside or spans != (h // spec.merge, w // spec.merge):
        raise PromptMismatch(
            f"{name}: grid {one.grid} is not the one its placeholders and positions were made for "
            f"(positions span {spans[0]} x {spans[1]} tokens); were inputs swapped?"
        )


def _name(prompt: Prompt) -> str:
    return "a prompt" if prompt.sample is None else f"sample {prompt.sample.id}"
