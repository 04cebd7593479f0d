"""Attention of the token that each running completion decodes: its group's prompt, its own tokens, itself.

The cache of a layer is two flat buffers. A group's prompt has D values for each of [Hk, room] rows from `prompt_at` on,
its completions for each of [completions, Hk, room] rows from `own_at` on; the new keys and values are written at
`place`. Suffixes: T rows of the batch, S groups, Hq query heads, Hk key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_fast.ops.backends import choose


class GroupPlace(NamedTuple):
    """Where a group lies, in rows of the batch and in rows of D values of the cache."""

    first: int  # its rows of the batch are `first` to `first + count`
    count: int
    prompt_at: int
    prompt_room: int
    prompt: int  # tokens
    own_at: int
    own_room: int
    place: int  # of the token being decoded, within the completion


def table(groups: Sequence[GroupPlace]) -> Tensor:
    """[S, 8] int64 on the host."""
    return torch.tensor(groups, dtype=torch.int64).view(-1, len(GroupPlace._fields))


def is_fused(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether kernels serve; elsewhere each step has its own form of the same in torch."""
    if dtype not in (torch.bfloat16, torch.float16) or head_size not in (16, 32, 64, 128, 256):
        return False
    return choose("decode_attention", device, dtype) == "triton"


def reference(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, groups: Tensor, group_of: Tensor, scale: float
) -> Tensor:
    """Row by row, in the dtype given."""
    heads, size = k.shape[1:]
    out = torch.zeros_like(q)
    k_rows, v_rows = keys.view(-1, size), values.view(-1, size)
    for row, number in enumerate(group_of.tolist()):
        if number < 0:
            continue
        group = GroupPlace(*groups[number].tolist())
        for head in range(heads):
            prompt = group.prompt_at + head * group.prompt_room
            own = group.own_at + ((row - group.first) * heads + head) * group.own_room
            k_rows[own + group.place], v_rows[own + group.place] = k[row, head], v[row, head]
            rows = [*range(prompt, prompt + group.prompt), *range(own, own + group.place + 1)]
            per_key = slice(head * (q.shape[1] // heads), (head + 1) * (q.shape[1] // heads))
            out[row, per_key] = (q[row, per_key] @ k_rows[rows].T * scale).softmax(1) @ v_rows[rows]
    return out


@torch.library.custom_op("grpo_fast::decode_attention", mutates_args=("keys", "values"))
def decode_attention(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hk, D]
    v: Tensor,
    keys: Tensor,  # flat
    values: Tensor,
    groups: Tensor,  # [S, 8] int64, as `table` makes it
    group_of: Tensor,  # [T] int64, -1: padding, which attends to nothing
    scale: float,
    longest: int,  # no prompt has more tokens
    most: int,  # no group has more rows
) -> Tensor:  # [T, Hq, D]
    from grpo_fast.kernels import decode_attention as kernels

    return kernels.decode_attention(q, k, v, keys, values, groups, group_of, scale, longest, most)


@decode_attention.register_fake
def _(q, *_):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)
