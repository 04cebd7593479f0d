"""The attention plan of a packed batch: each prompt once, every completion attending to it.

Packed rows of a group: prompt, completion 1, …, completion G. Gathered keys: [prompt], [prompt, completion 1], …;
so one varlen call with bottom-right causal segments is exactly G separate causal sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo_fast.types import AttentionPlan, RowGather

Ints = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where everything of the packed groups lies. Segments: per group its prompt, then its completions."""

    segment_lengths: Ints  # [groups + S]
    segment_starts: Ints  # [groups + S] first packed row
    prompt_segments: Ints  # [groups]
    completion_segments: Ints  # [S]
    group_sizes: Ints  # [groups]
    cu_seqlens: Ints  # [S + 1] over the scored rows

    @property
    def tokens(self) -> int:
        return int(self.segment_lengths.sum())


def layout(prompt_lengths: Ints, completion_lengths: Ints, group_sizes: Ints) -> Layout:
    groups, sequences = len(prompt_lengths), len(completion_lengths)
    prompt_segments = _starts(group_sizes) + np.arange(groups)
    lengths = np.empty(groups + sequences, dtype=np.int64)
    is_prompt = np.zeros(groups + sequences, dtype=bool)
    is_prompt[prompt_segments] = True
    lengths[is_prompt] = prompt_lengths
    lengths[~is_prompt] = completion_lengths
    return Layout(
        segment_lengths=lengths,
        segment_starts=_starts(lengths),
        prompt_segments=prompt_segments,
        completion_segments=np.flatnonzero(~is_prompt),
        group_sizes=np.asarray(group_sizes),
        cu_seqlens=np.concatenate([[0], np.cumsum(completion_lengths)]).astype(np.int64),
    )


def attention_plan(lay: Layout) -> AttentionPlan:
    copies = lay.group_sizes + 1  # of every prompt row: its own segment and one per completion
    prefix = np.repeat(lay.segment_lengths[lay.prompt_segments], copies)  # of each segment's group
    own = lay.segment_lengths.copy()
    own[lay.prompt_segments] = 0
    key_lengths = prefix + own
    key_starts = _starts(key_lengths)

    # Two blocks per segment: the group's prompt, then the segment's own rows (none for the prompt's segment).
    sources = np.stack([np.repeat(lay.segment_starts[lay.prompt_segments], copies), lay.segment_starts], 1)
    targets = np.stack([key_starts, key_starts + prefix], 1)
    lengths = np.stack([prefix, own], 1)
    total = int(key_lengths.sum())
    place = np.arange(total, dtype=np.int32)
    index = np.repeat((sources - targets).astype(np.int32).ravel(), lengths.ravel())
    index += place

    row_copies = np.ones(len(own), dtype=np.int32)
    row_copies[lay.prompt_segments] = copies
    offsets = _offsets(np.repeat(row_copies, lay.segment_lengths))
    dest = np.empty(total, dtype=np.int32)
    own_key = np.repeat((targets[:, 1] - lay.segment_starts).astype(np.int32), lay.segment_lengths)
    own_key += place[: lay.tokens]
    key_starts = key_starts.astype(np.int32)
    ends = np.append(lay.segment_starts[lay.prompt_segments[1:]], lay.tokens)
    for first, size, end in zip(lay.prompt_segments, lay.group_sizes, ends, strict=True):
        start, length = lay.segment_starts[first], lay.segment_lengths[first]
        middle = offsets[start] + length * (size + 1)
        block = dest[offsets[start] : middle].reshape(length, size + 1)
        np.add(place[:length, None], key_starts[first : first + size + 1], out=block)
        dest[middle : offsets[end]] = own_key[start + length : end]

    return plan_of(lay.segment_lengths, key_lengths, kv=_rows(index, offsets, dest))


def plan_of(q_lengths: Ints, k_lengths: Ints, kv: RowGather | None = None, causal: bool = True) -> AttentionPlan:
    cu_q = np.concatenate([[0], np.cumsum(q_lengths)]).astype(np.int32)
    cu_k = np.concatenate([[0], np.cumsum(k_lengths)]).astype(np.int32)
    return AttentionPlan(
        cu_q=torch.from_numpy(cu_q),
        cu_k=torch.from_numpy(cu_k),
        host_q=tuple(cu_q.tolist()),
        host_k=tuple(cu_k.tolist()),
        max_q=int(q_lengths.max(initial=0)),
        max_k=int(k_lengths.max(initial=0)),
        kv=kv,
        causal=causal,
    )


def scored_rows(lay: Layout) -> RowGather:
    """Target j of a completion is predicted by its row j - 1; target 0 by the prompt's last row, shared by G."""
    scored = int(lay.cu_seqlens[-1])
    firsts = lay.cu_seqlens[:-1]
    starts = lay.segment_starts[lay.completion_segments]
    lengths = lay.segment_lengths[lay.completion_segments]
    prompt_last = lay.segment_starts[lay.prompt_segments] + lay.segment_lengths[lay.prompt_segments] - 1
    index = np.arange(scored, dtype=np.int32)
    index += np.repeat((starts - 1 - firsts).astype(np.int32), lengths)
    index[firsts] = np.repeat(prompt_last, lay.group_sizes)

    in_completion = np.ones(len(lay.segment_lengths), dtype=np.int32)
    in_completion[lay.prompt_segments] = 0
    copies = np.repeat(in_completion, lay.segment_lengths)
    copies[starts + lengths - 1] = 0
    copies[prompt_last] = lay.group_sizes

    # By source row, a group's targets come as: its G first targets, then the others in order; so those of the i-th
    # completion move on by the G - 1 - i first targets still to come.
    blocks = lay.segment_lengths - 1
    blocks[lay.prompt_segments] = lay.group_sizes
    within = np.arange(len(firsts)) - np.repeat(_starts(lay.group_sizes), lay.group_sizes)
    moved = np.zeros(len(blocks), dtype=np.int32)
    moved[lay.completion_segments] = np.repeat(lay.group_sizes, lay.group_sizes) - 1 - within
    dest = np.arange(scored, dtype=np.int32)
    dest -= np.repeat(moved, blocks)
    dest[np.repeat(firsts[_starts(lay.group_sizes)], lay.group_sizes) + within] = firsts
    return _rows(index, _offsets(copies), dest)


def positions(lay: Layout, prompts: list[Tensor]) -> Tensor:
    """[4, T]: the place in its own sequence, then M-RoPE. Completion rows go on from the prompt's highest position."""
    prefix = np.repeat(lay.segment_lengths[lay.prompt_segments], lay.group_sizes + 1)
    prefix[lay.prompt_segments] = 0
    rope_start = np.repeat([int(p.max()) + 1 for p in prompts], lay.group_sizes + 1)
    out = np.empty((4, lay.tokens), dtype=np.int64)
    rows = np.arange(lay.tokens)
    out[0] = rows + np.repeat(prefix - lay.segment_starts, lay.segment_lengths)
    out[1:] = rows + np.repeat(rope_start - lay.segment_starts, lay.segment_lengths)
    for segment, prompt in zip(lay.prompt_segments, prompts, strict=True):
        start = lay.segment_starts[segment]
        out[1:, start : start + prompt.shape[1]] = prompt.numpy()
    return torch.from_numpy(out)


def _starts(lengths: Ints) -> Ints:
    return np.cumsum(lengths) - lengths


def _offsets(counts: Ints) -> Ints:
    offsets = np.empty(len(counts) + 1, dtype=np.int64)
    offsets[0] = 0
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _rows(index: Ints, offsets: Ints, dest: Ints) -> RowGather:
    return RowGather(torch.from_numpy(index), torch.from_numpy(offsets), torch.from_numpy(dest))
