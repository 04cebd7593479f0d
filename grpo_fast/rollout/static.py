"""Decoding at fixed shapes, for CUDA graphs and torch.compile: one graph for each bucket of groups and of own tokens.

Every group takes the same room, its prompt's rounded up; lengths are data, not shapes. Where kernels serve they read
what there is; elsewhere masks hide the rest, and more is read. Only whole groups leave the batch; a captured step costs
one launch instead of thousands. Graphs live for one rollout: gathered weights may lie elsewhere in the next, adapters
may be switched. The bookkeeping and the arithmetic are tested on a CPU, where nothing is compiled or captured; capture
itself has not been run on a GPU.
Suffixes: S group slots, G completions of a group, P room for a prompt, R room for a completion, Hk key heads, r query
heads a key head, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_fast.ops.decode_attention import GroupPlace, decode_attention, table
from grpo_fast.rollout.attention import run_layers
from grpo_fast.rollout.cache import KVPool

if TYPE_CHECKING:
    from grpo_fast.rollout.schedule import Running

PROMPT_MULTIPLE = 64
OWN_MULTIPLE = 128
GRAPHS = 1 << 16  # more than there are buckets


def prompt_room(longest: int) -> int:
    return -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def at_fixed_shapes(forward: Callable[[], Tensor], backend: Any = "inductor") -> Callable[[], Tensor]:
    """Compiled, however many buckets there are: torch counts the graphs of one piece of code, and gives up at eight."""
    compiled = torch.compile(forward, dynamic=False, backend=backend)

    def run() -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
            return compiled()

    return run


@dataclass(slots=True, eq=False)
class Inputs:
    """What a graph reads anew at every replay."""

    ids: Tensor  # [S * G]
    positions: Tensor  # [S * G]
    groups: Tensor  # [S, 8]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ids, self.positions, self.groups

    def copy(self, device: torch.device | None = None) -> Inputs:
        return Inputs(*(x.to(device, copy=True) for x in self.tensors()))

    @property
    def prompt(self) -> Tensor:
        """[S] tokens of each group's prompt."""
        return self.groups[:, GroupPlace._fields.index("prompt")]

    @property
    def place(self) -> Tensor:
        """[S] of the token being decoded, within the completions of each group."""
        return self.groups[:, GroupPlace._fields.index("place")]


@dataclass(slots=True)
class StaticDecoder:
    language_model: Any
    pool: KVPool
    prompt: int  # P
    group_size: int  # G
    tokens: int  # R
    fused: bool  # kernels serve
    inputs: dict[int, Inputs] = field(default_factory=dict)  # by groups
    nothing: dict[int, Inputs] = field(default_factory=dict)  # the same on the host, where no group runs
    steps: dict[tuple[int, int], Callable[[], Tensor]] = field(default_factory=dict)  # by groups and own tokens
    graph_pool: Any = None

    def __post_init__(self) -> None:
        self.pool.divide(self.prompt, self.group_size, self.tokens)
        for buffer in (*self.pool.keys, *self.pool.values):
            buffer.zero_()  # masked keys weigh 0, which only a finite value survives

    @property
    def block(self) -> int:
        """Rows of one group."""
        return self.prompt + self.group_size * self.tokens

    def hidden(
        self,
        running: Sequence[Running],
        lengths: Sequence[int],  # of the running groups' prompts
        ids: Tensor,  # of the running completions, group by group
        positions: Tensor,
    ) -> Tensor:
        """[rows, H] hidden states of the running completions."""
        groups = min(_power_of_two(len(running)), self.pool.slots)
        self._move_to_front(running, groups)
        places = [group.length - 1 for group in running]
        own = self.tokens
        if not self.fused:
            own = min(own, -(-(max(places) + 1) // OWN_MULTIPLE) * OWN_MULTIPLE)
        slots = [group.cache.start // self.block for group in running]
        rows = torch.tensor(
            [
                slot * self.group_size + i
                for slot, group in zip(slots, running, strict=True)
                for i in range(len(group.slots))
            ]
        )
        if groups not in self.inputs:
            self.nothing[groups] = self._empty(groups)
            self.inputs[groups] = self.nothing[groups].copy(self.pool.shape.device)
        inputs, fresh = self.inputs[groups], self.nothing[groups].copy()
        fresh.ids[rows], fresh.positions[rows] = ids, positions
        fresh.prompt[slots], fresh.place[slots] = torch.tensor(lengths), torch.tensor(places)
        for mine, its in zip(inputs.tensors(), fresh.tensors(), strict=True):
            mine.copy_(its, non_blocking=True)
        if (groups, own) not in self.steps:  # after the inputs: preparing runs the step, and so writes to the cache
            self.steps[groups, own] = self._prepare(inputs, groups, own)
        return self.steps[groups, own]()[rows.to(inputs.ids.device, non_blocking=True)]

    def _empty(self, groups: int) -> Inputs:
        """What no running group fills: prompts without tokens, and completions at their first."""
        heads, size = self.pool.shape.kv_heads, self.group_size
        entries = []
        for slot in range(groups):
            prompt_at, own_at = self.pool.places(slot * self.block, self.prompt, size * self.tokens)
            entries.append(
                GroupPlace(slot * size, size, prompt_at * heads, self.prompt, 0, own_at * heads, self.tokens, 0)
            )
        ids, positions = torch.zeros(2, groups * self.group_size, dtype=torch.int64)
        return Inputs(ids, positions, table(entries))

    def _move_to_front(self, running: Sequence[Running], groups: int) -> None:
        for group in running:
            if group.cache.start >= groups * self.block:
                target = self.pool.take(self.prompt, self.group_size, self.tokens)
                assert target is not None and target.start < group.cache.start  # the first free one comes before
                target.copy_from(group.cache)
                self.pool.give_back(group.cache)
                group.cache = target

    def _prepare(self, inputs: Inputs, groups: int, own: int) -> Callable[[], Tensor]:
        step = StaticStep(self, inputs, groups, own)

        def forward() -> Tensor:
            embeds = self.language_model.embed_tokens(inputs.ids)
            return run_layers(self.language_model, embeds, inputs.positions.expand(3, -1), step)

        return self._captured(forward) if inputs.ids.device.type == "cuda" else forward

    def _captured(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        compiled = at_fixed_shapes(forward)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, tunes, and fills every lazily made buffer outside the graph
            for _ in range(2):
                compiled()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.graph_pool = self.graph_pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.graph_pool):
            out = compiled()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class StaticStep:
    def __init__(self, decoder: StaticDecoder, inputs: Inputs, groups: int, own: int) -> None:
        shape, slots = decoder.pool.shape, decoder.pool.slots
        heads, size = shape.kv_heads, shape.head_dim
        middle, end = slots * decoder.prompt, slots * decoder.block
        self.decoder, self.inputs, self.groups, self.own = decoder, inputs, groups, own
        self.group_of = torch.arange(groups, device=shape.device).repeat_interleave(decoder.group_size)

        def views(buffer: Tensor) -> tuple[Tensor, Tensor]:
            rows = buffer.view(-1, shape.row_values)
            prefix = rows[:middle].view(slots, heads, decoder.prompt, size)
            return prefix[:groups], rows[middle:end].view(slots, -1, heads, decoder.tokens, size)[:groups]

        self.keys, self.values = [
            [views(buffer) for buffer in side] for side in (decoder.pool.keys, decoder.pool.values)
        ]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self.decoder.fused:
            keys, values = self.decoder.pool.keys[layer], self.decoder.pool.values[layer]
            groups, longest, most = self.inputs.groups, self.decoder.prompt, self.decoder.group_size
            return decode_attention(q, k, v, keys, values, groups, self.group_of, scale, longest, most)
        (prefix_k, own_k), (prefix_v, own_v) = self.keys[layer], self.values[layer]
        groups, size, heads, _, width = own_k.shape
        at = self.inputs.place.view(-1, 1, 1, 1, 1).expand(groups, size, heads, 1, width)
        own_k.scatter_(3, at, k.view(groups, size, heads, 1, width))
        own_v.scatter_(3, at, v.view(groups, size, heads, 1, width))
        own_k, own_v = own_k[:, :, :, : self.own], own_v[:, :, :, : self.own]

        q = (q * scale).view(groups, size, heads, -1, width)  # [S, G, Hk, r, D]
        shared_q = q.transpose(1, 2).flatten(2, 3)  # [S, Hk, G * r, D]
        shared = (shared_q @ prefix_k.transpose(2, 3)).unflatten(2, (size, -1))  # [S, Hk, G, r, P]
        own = (q @ own_k.transpose(3, 4)).transpose(1, 2)  # [S, Hk, G, r, R]
        shared = shared.masked_fill(self._beyond(prefix_k.shape[2], self.inputs.prompt), -math.inf)
        own = own.masked_fill(self._beyond(self.own, self.inputs.place + 1), -math.inf)
        wide = torch.promote_types(v.dtype, torch.float32)
        share = torch.cat([shared, own], 4).softmax(4, dtype=wide).to(v.dtype)
        of_prompt, of_own = share.split([prefix_k.shape[2], self.own], 4)
        from_prompt = (of_prompt.flatten(2, 3) @ prefix_v).unflatten(2, (size, -1)).transpose(1, 2)
        return (from_prompt + of_own.transpose(1, 2) @ own_v).flatten(2, 3).flatten(0, 1)

    def _beyond(self, keys: int, lengths: Tensor) -> Tensor:
        return (torch.arange(keys, device=lengths.device) >= lengths[:, None]).view(-1, 1, 1, 1, keys)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
