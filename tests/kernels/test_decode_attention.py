"""Attention of one token for every running completion, against a row-by-row computation in fp64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from grpo_fast.kernels import decode_attention as kernels
from grpo_fast.ops.decode_attention import GroupPlace, decode_attention, is_fused, reference, table

HEADS, PER_KEY, SIZE = 2, 3, 16  # key heads, query heads a key head


class Batch(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    groups: Tensor
    group_of: Tensor
    scale: float
    longest: int
    most: int


def batch(
    shapes: list[tuple[int, int, int]],  # completions, prompt tokens, place
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    padding: int = 0,
    spread: float = 1.0,
) -> Batch:
    """Groups in pieces of a pool that lie in any order, with room to spare; what nobody may read is NaN."""
    groups, at, first = [], 5, 0
    for count, prompt, place in shapes:
        rooms = prompt + 3, place + 4
        groups.append(GroupPlace(first, count, at, rooms[0], prompt, at + HEADS * rooms[0] + 1, rooms[1], place))
        at += HEADS * (rooms[0] + count * rooms[1]) + 7
        first += count
    keys, values = (torch.full((at, SIZE), float("nan"), device=device) for _ in range(2))
    for group in groups:
        for head in range(HEADS):
            spans = [(group.prompt_at + head * group.prompt_room, group.prompt)]
            spans += [(group.own_at + (i * HEADS + head) * group.own_room, group.place) for i in range(group.count)]
            for start, length in spans:
                for rows in (keys, values):
                    rows[start : start + length] = spread * torch.randn(length, SIZE, device=device)
    total = first + padding
    q, k, v = (torch.randn(total, heads, SIZE, device=device) for heads in (HEADS * PER_KEY, HEADS, HEADS))
    group_of = [number for number, one in enumerate(groups) for _ in range(one.count)] + [-1] * padding
    return Batch(
        *(x.to(dtype) for x in (spread * q, k, v)), *(x.to(dtype).flatten() for x in (keys, values)),
        table(groups).to(device), torch.tensor(group_of, device=device), SIZE**-0.5,
        max(prompt for _, prompt, _ in shapes), max(count for count, _, _ in shapes),
    )  # fmt: skip


def check(made: Batch) -> Tensor:
    exact = [x.double() for x in made[:5]]
    expected = reference(*exact, *made[5:8])
    keys, values = made.keys.clone(), made.values.clone()
    out = decode_attention(*made[:3], keys, values, *made[5:])
    eps = torch.finfo(made.q.dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=2 * eps, atol=2 * eps * exact[4].nan_to_num().abs().max())
    for written, truth in ((keys, exact[3]), (values, exact[4])):  # the new token's, and nothing else
        torch.testing.assert_close(written.double(), truth, rtol=0, atol=0, equal_nan=True)
    return out


# one completion, one key; a whole tile and its neighbours; groups of different sizes; more queries than a program takes
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1, 0)],
        [(2, 64, 64), (2, 63, 1)],
        [(3, 65, 130), (1, 7, 0), (2, 200, 63)],
        [(30, 20, 5)],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_against_fp64(shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> None:
    check(batch(shapes, device, dtype))


def test_padding_attends_to_nothing_and_writes_nothing(device: torch.device) -> None:
    made = batch([(2, 10, 3), (1, 4, 0)], device, padding=3)
    assert not check(made)[-3:].any()


def test_sharp_attention(device: torch.device) -> None:
    """Logits of some hundreds: whichever part holds the largest, the others must vanish without a NaN."""
    made = batch([(2, 70, 66), (2, 3, 2)], device, spread=12.0)
    assert check(made).isfinite().all()


@pytest.mark.parametrize("waves", [1, 8])
def test_programs_share_a_prompt(waves: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_WAVES", waves)
    check(batch([(2, 300, 4), (1, 5, 70)], device))


def test_a_prompt_that_is_empty(device: torch.device) -> None:
    check(batch([(2, 0, 3), (1, 9, 1)], device))


def test_where_it_serves(device: torch.device) -> None:
    assert is_fused(device, torch.bfloat16, 128) == (device.type == "cuda")
    assert not is_fused(device, torch.float32, 128) and not is_fused(device, torch.bfloat16, 80)


def test_no_rows(device: torch.device) -> None:
    made = batch([(1, 2, 0)], device)
    none = [x[:0] for x in made[:3]]
    assert decode_attention(*none, *made[3:6], made.group_of[:0], *made[7:]).shape == (0, HEADS * PER_KEY, SIZE)


def test_opcheck(device: torch.device) -> None:
    made = tuple(batch([(2, 10, 3)], device))
    torch.library.opcheck(decode_attention, made, test_utils=("test_schema", "test_faketensor"))
