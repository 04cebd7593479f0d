"""M-RoPE positions (t, h, w) of a prompt, equal to `get_rope_index` of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Text counts up on all three axes alike. A vision block counts over its own grid from where the text stopped, and the
text after it goes on from the longer side of the grid, not from the number of its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_index(
    length: int,
    starts: Tensor,  # [K] int64, first token of each vision block, ascending
    grids: Tensor,  # [K, 3] int64, (t, h, w) in tokens, after the spatial merge
    intervals: Tensor,  # [K] fp32, positions that one step of t covers
) -> Tensor:  # [3, length] int64
    sizes = grids.prod(1)
    offset = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within the block
    tokens = starts.repeat_interleave(sizes) + offset
    height, width = grids[:, 1:].repeat_interleave(sizes, 0).unbind(1)
    instant = (offset // (height * width)).float() * intervals.repeat_interleave(sizes)  # fp32, as transformers rounds
    within = torch.stack([instant.long(), offset // width % height, offset % width])

    steps = torch.ones(length, dtype=torch.long)
    steps[tokens] = 0
    steps[starts + sizes - 1] = grids[:, 1:].amax(1)
    positions = (steps.cumsum(0) - steps).repeat(3, 1)  # exclusive, so a whole block stands at its first position
    positions[:, tokens] += within
    return positions
