"""Tiny Qwen-VL models, prompts and groups, and the computation that all of it must equal: plain transformers on G
padded copies of every prompt, each with its own copy of the images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

from grpo_fast.types import Group, Prompt, VisionInput

transformers.logging.set_verbosity_error()

VOCAB, HIDDEN = 160, 32
PAD, VISION_START, VISION_END, IMAGE, VIDEO, FIRST_TEXT = 0, 3, 4, 5, 6, 7
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PATCH = 4


def tiny_model(kind: str, dtype: torch.dtype = torch.float64, tied: bool = True, seed: int = 0, **text: int):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text_config = dict(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rope_parameters=rope, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
        pad_token_id=PAD, tie_word_embeddings=tied,
    )  # fmt: skip
    text_config.update(text)
    ids = dict(
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )  # fmt: skip
    patches = dict(patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2, num_heads=2)
    torch.manual_seed(seed)
    if kind == "qwen2_vl":
        vision = dict(depth=2, embed_dim=16, hidden_size=HIDDEN, mlp_ratio=2, in_channels=3, **patches)
        config = transformers.Qwen2VLConfig(text_config=text_config, vision_config=vision, **ids)
        model = transformers.Qwen2VLForConditionalGeneration(config)
    elif kind == "qwen2_5_vl":
        vision = dict(
            depth=3, hidden_size=16, out_hidden_size=HIDDEN, intermediate_size=24, window_size=16,
            fullatt_block_indexes=[1], tokens_per_second=2, in_channels=3, **patches,
        )  # fmt: skip
        config = transformers.Qwen2_5_VLConfig(text_config=text_config, vision_config=vision, **ids)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision = dict(
            depth=3, hidden_size=16, out_hidden_size=HIDDEN, intermediate_size=24, num_position_embeddings=25,
            deepstack_visual_indexes=[0, 1], in_channels=3, **patches,
        )  # fmt: skip
        text_config["head_dim"] = 8
        config = transformers.Qwen3VLConfig(text_config=text_config, vision_config=vision, **ids)
        model = transformers.Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():  # biases and norms are constant at first: make every gradient path tell
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).train()


def picture(seed: int, grid: tuple[int, int, int] = (1, 4, 6), kind: str = "image", dtype=torch.float64) -> VisionInput:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(grid[0] * grid[1] * grid[2], 3 * 2 * PATCH**2, generator=generator, dtype=torch.float64)
    key = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    return VisionInput(kind, pixels.to(dtype), grid, key, seconds_per_grid=1.0)  # pyright: ignore[reportArgumentType]


def prompt(model, parts: Sequence[int | VisionInput], seed: int = 0) -> Prompt:
    """`parts`: numbers of text tokens and vision inputs, in order. Positions come from the model's own method."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ids: list[Tensor] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(torch.randint(FIRST_TEXT, VOCAB, (part,), generator=generator))
            continue
        t, h, w = part.grid
        frames = t if model.config.model_type == "qwen3_vl" else 1  # Qwen3-VL tells a video frame by frame
        token = IMAGE if part.kind == "image" else VIDEO
        for _ in range(frames):
            stamp = torch.randint(FIRST_TEXT, VOCAB, (2,), generator=generator) if frames > 1 else torch.tensor([])
            tokens = torch.full((t * h * w // 4 // frames,), token)
            ids.append(torch.cat([stamp.long(), torch.tensor([VISION_START]), tokens, torch.tensor([VISION_END])]))
    input_ids = torch.cat(ids)
    pictures = [part for part in parts if not isinstance(part, int)]
    return Prompt(input_ids, rope_positions(model, input_ids, pictures), tuple(pictures))


def rope_positions(model, input_ids: Tensor, pictures: Sequence[VisionInput]) -> Tensor:
    if not pictures:
        return torch.arange(len(input_ids)).expand(3, -1)
    types = (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()
    seconds = {}
    if model.config.model_type == "qwen2_5_vl" and any(one.kind == "video" for one in pictures):
        seconds["second_per_grid_ts"] = torch.tensor([one.seconds_per_grid for one in pictures if one.kind == "video"])
    positions, _ = model.model.get_rope_index(
        input_ids[None], types[None], image_grid_thw=grids(pictures, "image"), video_grid_thw=grids(pictures, "video"),
        **seconds,
    )  # fmt: skip
    return positions[:, 0]


def grids(pictures: Sequence[VisionInput], kind: str) -> Tensor | None:
    found = [one.grid for one in pictures if one.kind == kind]
    return torch.tensor(found) if found else None


def group(one: Prompt, lengths: Sequence[int], seed: int = 0, old: bool = True) -> Group:
    generator = torch.Generator().manual_seed(2000 + seed)
    completions = tuple(torch.randint(FIRST_TEXT, VOCAB, (r,), generator=generator) for r in lengths)
    old_logps = tuple(-5 + 0.3 * torch.randn(r, generator=generator) for r in lengths)
    advantages = torch.randn(len(lengths), generator=generator)
    return Group(one, completions, advantages=advantages, old_logps=old_logps if old else None)


def plain(model):
    """A copy that never met a GRPOPolicy: stock SDPA, stock vision tower."""
    twin = copy.deepcopy(model)
    for part in (twin, twin.model, twin.model.visual, twin.model.language_model):
        part.config._attn_implementation = "sdpa"
    return twin


def repeated_logps(model, groups: Sequence[Group]) -> list[list[Tensor]]:
    """Log-probs of every completion from G right-padded copies of each prompt, all groups in one padded batch."""
    rows = [(item.prompt, completion) for item in groups for completion in item.completions]
    longest = max(len(p.input_ids) + len(c) for p, c in rows)
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    positions = torch.zeros(3, len(rows), longest, dtype=torch.int64)
    for i, (one, completion) in enumerate(rows):
        length, total = len(one.input_ids), len(one.input_ids) + len(completion)
        ids[i, :total], mask[i, :total] = torch.cat([one.input_ids, completion]), 1
        positions[:, i, :length] = one.positions
        positions[:, i, length:total] = one.positions.max() + 1 + torch.arange(len(completion))
    pictures = [one for p, _ in rows for one in p.vision]
    given = {}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if any(one.kind == kind for one in pictures):
            given[name] = torch.cat([one.pixels for one in pictures if one.kind == kind])
            given[f"{kind}_grid_thw"] = grids(pictures, kind)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **given).logits
    logps = logits.log_softmax(-1)
    found = iter(
        logps[i, len(one.input_ids) - 1 : len(one.input_ids) + len(completion) - 1]
        .gather(-1, completion[:, None])
        .squeeze(-1)
        for i, (one, completion) in enumerate(rows)
    )
    return [[next(found) for _ in item.completions] for item in groups]


def dapo_loss(groups: Sequence[Group], logps: list[list[Tensor]], epsilon: float = 0.2) -> Tensor:
    """The clipped loss over all tokens, written out."""
    total, tokens = torch.zeros((), dtype=logps[0][0].dtype), 0
    for item, found in zip(groups, logps, strict=True):
        assert item.advantages is not None
        for i, new in enumerate(found):
            old = new.detach() if item.old_logps is None else item.old_logps[i].to(new.dtype)
            ratio, advantage = (new - old).exp(), item.advantages[i].to(new.dtype)
            total = total - torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage).sum()
            tokens += len(new)
    return total / tokens


def gradients(model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst_relative(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert ours.keys() == truth.keys()
    return max(((ours[n] - g).norm() / g.norm().clamp_min(1e-30)).item() for n, g in truth.items() if g.norm() > 0)
