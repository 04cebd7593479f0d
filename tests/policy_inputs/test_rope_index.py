"""Positions by the definition, block after block, for layouts that no template renders."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_fast.policy.rope_index import rope_index

GRID = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
# (text tokens before the block, its grid, its interval); a 0 puts two blocks side by side.
BLOCKS = st.lists(st.tuples(st.integers(0, 3), GRID, st.sampled_from([1.0, 2.0, 0.3, 1 / 12, 50.0])), max_size=5)


@settings(deadline=None, max_examples=60)
@given(BLOCKS, st.integers(0, 3))
def test_definition(blocks, tail):
    wanted, starts, now = [], [], 0
    for text, (depth, height, width), interval in blocks:
        wanted += [(now + i,) * 3 for i in range(text)]
        now += text
        starts.append(len(wanted))
        instants = (torch.arange(depth) * interval).long().tolist()
        wanted += [
            (now + instants[t], now + y, now + x) for t in range(depth) for y in range(height) for x in range(width)
        ]
        now += max(height, width)
    wanted += [(now + i,) * 3 for i in range(tail)]

    positions = rope_index(
        len(wanted),
        torch.tensor(starts, dtype=torch.long),
        torch.tensor([grid for _, grid, _ in blocks], dtype=torch.long).view(-1, 3),
        torch.tensor([interval for *_, interval in blocks]),
    )
    assert positions.shape == (3, len(wanted)) and positions.dtype == torch.int64
    assert positions.T.tolist() == [list(position) for position in wanted]
