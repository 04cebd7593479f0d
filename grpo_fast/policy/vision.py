"""The Qwen-VL vision tower, run once per distinct image, in one packed pass.

Drives the tower's own modules; only what is slow there is done otherwise: the patch embedding is one linear product
(a convolution whose stride is its kernel), and a block's frames or windows are one attention call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grpo_fast.policy.plan import plan_of
from grpo_fast.types import AttentionPlan, VisionFeatures, VisionInput

Grid = tuple[int, int, int]


def encode(visual: Any, inputs: Sequence[VisionInput], backend: str = "auto") -> tuple[VisionFeatures, ...]:
    first = visual.patch_embed.proj.weight
    pixels = torch.cat([item.pixels.to(first.device, first.dtype, non_blocking=True) for item in inputs])
    features = encode_pixels(visual, pixels, [item.grid for item in inputs], backend)
    tokens = [token_count(item.grid, visual.spatial_merge_size) for item in inputs]
    parts = [features.embeds.split(tokens), *(level.split(tokens) for level in features.deepstack)]
    return tuple(VisionFeatures(embeds, tuple(levels)) for embeds, *levels in zip(*parts, strict=True))


def token_count(grid: Grid, merge: int) -> int:
    return grid[0] * grid[1] * grid[2] // merge**2


def encode_pixels(
    visual: Any,
    pixels: Tensor,  # [patches, channels * temporal_patch * patch * patch]
    grids: Sequence[Grid],
    backend: str = "auto",
) -> VisionFeatures:
    device, merge = pixels.device, visual.spatial_merge_size
    hidden = embed_patches(visual.patch_embed, pixels)
    if hasattr(visual, "pos_embed"):
        taps, weights = learned_position_taps(grids, merge, visual.num_grid_per_side)
        learned = visual.pos_embed(taps.to(device)) * weights.to(device)[..., None]
        hidden = hidden + learned.sum(1).to(hidden.dtype)

    frame_plan = _to(frames(grids), device)
    plans = [frame_plan] * len(visual.blocks)
    coordinates = patch_coordinates(grids, merge)
    order = None
    if hasattr(visual, "fullatt_block_indexes"):  # Qwen2.5-VL
        order, window_plan = windows(grids, merge, visual.window_size // merge // visual.patch_size)
        window_plan = _to(window_plan, device)
        plans = [frame_plan if i in visual.fullatt_block_indexes else window_plan for i in range(len(plans))]
        coordinates = coordinates.unflatten(0, (-1, merge**2))[order].flatten(0, 1)
        hidden = hidden.unflatten(0, (-1, merge**2))[order.to(device)].flatten(0, 1)

    rotation = _rotation(visual.rotary_pos_emb.inv_freq, coordinates.to(device))
    whole = torch.tensor([0, hidden.shape[0]], dtype=torch.int32)  # one split: the plan knows the segments
    deepstack = []
    for i, (block, plan) in enumerate(zip(visual.blocks, plans, strict=True)):
        hidden = block(hidden, cu_seqlens=whole, position_embeddings=rotation, plan=plan, attention_backend=backend)
        if i in getattr(visual, "deepstack_visual_indexes", ()):
            deepstack.append(visual.deepstack_merger_list[len(deepstack)](hidden))
    embeds = visual.merger(hidden)
    if order is not None:
        embeds = embeds[order.argsort().to(device)]
    return VisionFeatures(embeds, tuple(deepstack))


def embed_patches(patch_embed: Any, pixels: Tensor) -> Tensor:
    proj = patch_embed.proj
    if not isinstance(proj, nn.Conv3d):  # an adapter around it
        return patch_embed(pixels)
    return F.linear(pixels, proj.weight.flatten(1), proj.bias)


def frames(grids: Sequence[Grid]) -> AttentionPlan:
    """Every frame attends within itself."""
    lengths = np.concatenate([np.full(t, h * w) for t, h, w in grids])
    return plan_of(lengths, lengths, causal=False)


def windows(grids: Sequence[Grid], merge: int, window: int) -> tuple[Tensor, AttentionPlan]:
    """Order of the merged tokens, window by window, and the plan of the windows; `window` in merged tokens.

    Edge windows are smaller; nothing is padded.
    """
    orders, lengths, base = [], [], 0
    for t, h, w in grids:
        height, width = h // merge, w // merge
        frame, row, col = np.meshgrid(np.arange(t), np.arange(height), np.arange(width), indexing="ij")
        across = -(-width // window)
        down = -(-height // window)
        of = ((frame * down + row // window) * across + col // window).ravel()
        orders.append(base + np.argsort(of, kind="stable"))
        lengths.append(np.bincount(of, minlength=t * down * across) * merge**2)
        base += of.size
    sizes = np.concatenate(lengths)
    return torch.from_numpy(np.concatenate(orders)), plan_of(sizes, sizes, causal=False)


def patch_coordinates(grids: Sequence[Grid], merge: int) -> Tensor:
    """[patches, 2] row and column of every patch, in the tower's order: merge blocks, then within a block."""
    out = []
    for t, h, w in grids:
        rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([rows, cols], -1).view(h // merge, merge, w // merge, merge, 2)
        out.append(grid.transpose(1, 2).reshape(-1, 2).repeat(t, 1))
    return torch.cat(out)


def learned_position_taps(grids: Sequence[Grid], merge: int, side: int) -> tuple[Tensor, Tensor]:
    """Qwen3-VL: [patches, 4] table rows and bilinear weights; the table's corners meet the image's corners."""
    taps, weights = [], []
    for t, h, w in grids:
        spots = patch_coordinates([(1, h, w)], merge).double()
        spots = spots * (side - 1) / torch.tensor([max(h - 1, 1), max(w - 1, 1)])
        low = spots.floor().long()
        high = (low + 1).clamp(max=side - 1)
        part = (spots - low).float()
        (r0, c0), (r1, c1), (r, c) = low.unbind(1), high.unbind(1), part.unbind(1)
        taps.append(torch.stack([r0 * side + c0, r0 * side + c1, r1 * side + c0, r1 * side + c1], 1).repeat(t, 1))
        weights.append(torch.stack([(1 - r) * (1 - c), (1 - r) * c, r * (1 - c), r * c], 1).repeat(t, 1))
    return torch.cat(taps), torch.cat(weights)


def _rotation(inv_freq: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    angles = (coordinates[..., None].float() * inv_freq.float()).flatten(1)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def _to(plan: AttentionPlan, device: torch.device) -> AttentionPlan:
    cu = plan.cu_q.to(device, non_blocking=True)
    return AttentionPlan(cu, cu, plan.host_q, plan.host_k, plan.max_q, plan.max_k, None, plan.causal)
