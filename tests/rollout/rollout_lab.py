"""What a rollout must equal: transformers' own `generate` on one prompt at a time, with the same bans."""

from __future__ import annotations

import torch
from policy_lab import IMAGE, grids, picture, prompt
from torch import Tensor

from grpo_fast import GRPOLoss
from grpo_fast.policy import GRPOPolicy, Packer, split_rows
from grpo_fast.rollout import Engine, SamplingParams
from grpo_fast.types import Prompt

ROW_BYTES = 2 * 3 * 2 * 8 * 4  # keys and values, 3 layers, 2 heads of 8, fp32
GRIDS = [(1, 4, 6), (1, 4, 4), (1, 6, 4), (1, 2, 2)]


def mixed_prompts(model, count: int) -> list[Prompt]:
    """Text only, one image, two or three images, all of unequal lengths; some images come twice."""
    made = []
    for i in range(count):
        images = [picture((3 * i + j) % 20, GRIDS[(i + j) % 4], dtype=torch.float32) for j in range(i % 4)]
        parts = [part for j, image in enumerate(images) for part in (1 + (i + j) % 3, image)]
        made.append(prompt(model, [*parts, 2 + i % 7], seed=i))
    return made


def hf_greedy(model, one: Prompt, engine: Engine, params: SamplingParams) -> Tensor:
    images = {}
    if one.vision:
        images = {
            "pixel_values": torch.cat([image.pixels for image in one.vision]),
            "image_grid_thw": grids(one.vision, "image"),
            "mm_token_type_ids": (one.input_ids == IMAGE).int()[None],
        }
    ids = one.input_ids[None]
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=params.max_tokens, do_sample=False,
        suppress_tokens=list(engine.banned_tokens(params)), eos_token_id=list(engine.stop_tokens(params)),
        pad_token_id=0, repetition_penalty=params.repetition_penalty, **images,
    )  # fmt: skip
    return out[0, ids.shape[1] :]


def trainer_error(policy: GRPOPolicy, groups, temperature: float) -> float:
    """How far the recorded log-probs are from those that training computes."""
    policy.loss = GRPOLoss(temperature=temperature)
    (batch,) = Packer(policy.prompt_spec, 10**6, policy.loss.options).pack(groups).batches
    found = split_rows(batch, policy.logps(batch))
    return max(
        (found[g, i] - x).abs().max().item() for g, one in enumerate(groups) for i, x in enumerate(one.sampler_logps)
    )
