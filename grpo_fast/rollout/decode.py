"""One token for every running completion of every group: one product a layer for all rows, attention by group.

Where kernels serve, they take all groups at once. Elsewhere each group takes its turn: its completions are equally long
while they run, so it attends without masks. Its rows, and the query heads that share a key head, form one product with
the prompt's keys, which are stored once; one batched product with each row's own keys; one softmax over both.
Suffixes: M rows, g running completions of a group, P prompt tokens, t own tokens, Hk key heads, r query heads a key
head, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_fast.ops.decode_attention import GroupPlace, decode_attention, table
from grpo_fast.rollout.cache import GroupCache, KVPool
from grpo_fast.rollout.prefill import pad_rows


class GroupRows(NamedTuple):
    cache: GroupCache
    rows: slice  # of the batch
    place: int  # of the token being decoded, within the completion; so t = place + 1


class FusedStep:
    """For a batch of `rows`; those that belong to no group are padding and attend to nothing."""

    def __init__(self, pool: KVPool, groups: Sequence[GroupRows], rows: int) -> None:
        counts = [one.rows.stop - one.rows.start for one in groups]
        caches = [one.cache for one in groups]
        entries = [
            GroupPlace(
                one.rows.start, count, c.prompt_at, c.prompt_room, c.prompt_room, c.own_at, c.own_room, one.place
            )
            for one, count, c in zip(groups, counts, caches, strict=True)
        ]
        group_of = torch.full((rows,), -1)
        group_of[: sum(counts)] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.pool = pool
        self.groups, self.group_of = (x.to(pool.shape.device, non_blocking=True) for x in (table(entries), group_of))
        self.longest, self.most = max(c.prompt_room for c in caches), max(counts)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        return decode_attention(q, k, v, keys, values, self.groups, self.group_of, scale, self.longest, self.most)


class GroupedStep:
    """Rows that belong to no group are padding and attend to nothing."""

    def __init__(self, groups: Sequence[GroupRows]) -> None:
        self.groups = groups

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q = q * scale
        out = [self._group(one, layer, q[one.rows], k[one.rows], v[one.rows]) for one in self.groups]
        done = self.groups[-1].rows.stop
        if done < len(q):
            out.append(q.new_zeros(len(q) - done, *q.shape[1:]))
        return torch.cat(out)

    def _group(self, one: GroupRows, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, place, g = one.cache, one.place, len(q)
        own_k, own_v = cache.suffix_keys[layer][:g], cache.suffix_values[layer][:g]
        own_k[:, :, place] = k
        own_v[:, :, place] = v
        own_k, own_v = (x[:, :, : place + 1].flatten(0, 1) for x in (own_k, own_v))  # [g * Hk, t, D]
        prefix_k, prefix_v = cache.prefix_keys[layer], cache.prefix_values[layer]
        heads, prompt = prefix_k.shape[:2]

        q = q.unflatten(1, (heads, -1))  # [g, Hk, r, D]
        shared_q = q.transpose(0, 1).flatten(1, 2)  # [Hk, g * r, D]
        shared = torch.bmm(pad_rows(shared_q), prefix_k.transpose(1, 2))[:, : g * q.shape[2]]
        own = torch.bmm(q.flatten(0, 1), own_k.transpose(1, 2))
        scores = torch.cat([shared.unflatten(1, (g, -1)), own.unflatten(0, (g, -1)).transpose(0, 1)], 3)
        share = scores.softmax(3, dtype=torch.promote_types(v.dtype, torch.float32)).to(v.dtype)  # [Hk, g, r, P + t]

        from_prompt = torch.bmm(pad_rows(share[..., :prompt].flatten(1, 2)), prefix_v)[:, : g * q.shape[2]].unflatten(
            1, (g, -1)
        )
        from_own = torch.bmm(share[..., prompt:].transpose(0, 1).flatten(0, 1), own_v)
        return (from_prompt.transpose(0, 1) + from_own.unflatten(0, (g, -1))).flatten(1, 2)
