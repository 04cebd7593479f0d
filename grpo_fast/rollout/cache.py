"""Keys and values of a rollout, in two buffers a layer that the engine owns.

A group takes P + G * R rows: its prompt's once, and room for R tokens of each of its G completions. They are one piece,
or, in a pool divided into slots of one size, a prompt's piece beside the other prompts' and a piece beside the other
completions', so that all slots together are one batch without copies.
Suffixes: P prompt tokens, R tokens a completion may have, Hk key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def row_values(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def row_bytes(self) -> int:
        """Of one token: keys and values in every layer."""
        return 2 * self.layers * self.row_values * self.dtype.itemsize


class KVPool:
    def __init__(self, shape: CacheShape, rows: int) -> None:
        self.shape, self.rows = shape, rows
        self.keys, self.values = (
            [torch.empty(rows * shape.row_values, dtype=shape.dtype, device=shape.device) for _ in range(shape.layers)]
            for _ in range(2)
        )
        self.clear()

    def clear(self) -> None:
        self._free = [(0, self.rows)]
        self.slots = 0  # 0: groups of any size
        self.used = self.peak = 0

    def take(self, prompt: int, completions: int, tokens: int) -> GroupCache | None:
        """Room for one group, the first piece that is large enough; None where there is none."""
        rows = prompt + completions * tokens
        for i, (start, size) in enumerate(self._free):
            if size >= rows:
                self._free[i : i + 1] = [(start + rows, size - rows)] if size > rows else []
                self.used += rows
                self.peak = max(self.peak, self.used)
                return GroupCache(self, start, prompt, completions, tokens)
        return None

    def divide(self, prompt: int, completions: int, tokens: int) -> None:
        """Every group taken from here on has these sizes."""
        self.slots = self.rows // (prompt + completions * tokens)

    def places(self, start: int, prompt: int, own: int) -> tuple[int, int]:
        """Where the prompt's rows begin, and the completions' own, of the group whose piece starts at `start`."""
        if not self.slots:
            return start, start + prompt
        slot = start // (prompt + own)
        return slot * prompt, self.slots * prompt + slot * own

    def give_back(self, cache: GroupCache) -> None:
        self.used -= cache.rows
        merged: list[tuple[int, int]] = []
        for start, size in sorted([*self._free, (cache.start, cache.rows)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self._free = merged


class GroupCache:
    """One group's part of the pool, by layer: `prefix_keys[l]` [Hk, P, D] and `suffix_keys[l]` [G, Hk, R, D]."""

    def __init__(self, pool: KVPool, start: int, prompt: int, completions: int, tokens: int) -> None:
        self.start, self.rows = start, prompt + completions * tokens
        heads, size = pool.shape.kv_heads, pool.shape.head_dim
        prefix_at, own_at = pool.places(start, prompt, completions * tokens)
        self.prompt_room, self.own_room = prompt, tokens
        self.prompt_at, self.own_at = prefix_at * heads, own_at * heads  # in rows of D values

        def views(buffer: Tensor) -> tuple[Tensor, Tensor]:
            rows = buffer.view(-1, heads * size)
            prefix, own = rows[prefix_at : prefix_at + prompt], rows[own_at : own_at + completions * tokens]
            return prefix.view(heads, prompt, size), own.view(completions, heads, tokens, size)

        self.prefix_keys, self.suffix_keys = zip(*map(views, pool.keys), strict=True)
        self.prefix_values, self.suffix_values = zip(*map(views, pool.values), strict=True)

    def copy_from(self, other: GroupCache) -> None:
        for side in ("prefix_keys", "suffix_keys", "prefix_values", "suffix_values"):
            for mine, theirs in zip(getattr(self, side), getattr(other, side), strict=True):
                mine.copy_(theirs)

    def move(self, source: int, target: int, tokens: int) -> None:
        """The first `tokens` rows of one completion's room to another's."""
        for layer in (*self.suffix_keys, *self.suffix_values):
            layer[target, :, :tokens] = layer[source, :, :tokens]
