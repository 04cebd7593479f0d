"""group_advantages against the definition written out group by group in fp64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_fast import group_advantages


def by_hand(rewards: Tensor, sizes: list[int], scale: str, epsilon: float = 1e-4) -> Tensor:
    rewards = rewards.double()
    batch_std = rewards.std() if len(rewards) > 1 else rewards.new_zeros(())
    parts = []
    for group in rewards.split(sizes):
        centred = group - group.mean()
        if scale == "group":
            centred = centred / ((group.std() if len(group) > 1 else 0.0) + epsilon)
        elif scale == "batch":
            centred = centred / (batch_std + epsilon)
        parts.append(centred)
    return torch.cat(parts)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
# one size for all, ragged, a group of one at either end, one group
@pytest.mark.parametrize("sizes", [[4] * 3, [3, 5, 2, 7], [1, 6, 1], [11], [1]], ids=str)
@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_equals_the_definition(scale: str, sizes: list[int], epsilon: float) -> None:
    rewards = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(len(sizes)))
    expected = by_hand(rewards, sizes, scale, epsilon)
    actual = group_advantages(rewards, group_sizes=sizes, scale=scale, epsilon=epsilon)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("size", [np.int64(8), torch.tensor(8), torch.tensor(8, dtype=torch.int32)])
def test_one_size_may_be_anyones_integer(size: Any) -> None:
    rewards = torch.rand(24)
    assert torch.equal(group_advantages(rewards, group_sizes=size), group_advantages(rewards, group_sizes=8))


def test_one_size_means_equal_groups() -> None:
    rewards = torch.randn(24)
    assert torch.equal(group_advantages(rewards, group_sizes=8), group_advantages(rewards, group_sizes=[8, 8, 8]))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_group_sizes_may_be_a_tensor(as_tensor: bool) -> None:
    rewards, sizes = torch.randn(9), (2, 3, 4)
    expected = by_hand(rewards, list(sizes), "group")
    given_sizes = torch.tensor(sizes) if as_tensor else sizes
    torch.testing.assert_close(
        group_advantages(rewards, group_sizes=given_sizes).double(), expected, rtol=2e-6, atol=2e-6
    )


# 0.1 has no exact binary form: a mean of equal rewards that is off by one bit would be blown up by 1 / epsilon
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e4 / 3, 1e7 + 0.3, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 64])
def test_equal_rewards_give_exactly_zero(scale: str, value: float, size: int) -> None:
    rewards = torch.cat([torch.full((size,), value), torch.tensor([1.0, 2.0])])
    advantages = group_advantages(rewards, group_sizes=[size, 2], scale=scale)
    assert torch.equal(advantages[:size], torch.zeros(size))
    assert advantages[size:].abs().min() > 0


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_of_one_has_advantage_zero(scale: str) -> None:
    advantages = group_advantages(torch.tensor([3.7, 1.0, 2.0]), group_sizes=[1, 2], scale=scale)
    assert advantages[0] == 0 and advantages[1] < 0 < advantages[2]


def test_weights_sum_the_rewards_first() -> None:
    rewards, weights = torch.randn(12, 3), torch.tensor([0.5, 0.0, 2.0])
    actual = group_advantages(rewards, group_sizes=4, weights=weights)
    expected = by_hand((rewards.double() * weights).sum(1), [4] * 3, "group")
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_several_rewards_without_weights_count_equally() -> None:
    rewards = torch.randn(12, 3)
    actual = group_advantages(rewards, group_sizes=4)
    torch.testing.assert_close(
        actual.double(), by_hand(rewards.double().sum(1), [4] * 3, "group"), rtol=1e-5, atol=1e-5
    )


@given(
    rewards=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=24),
    shift=st.sampled_from([0.0, 1.0, -64.0]),
    scale=st.sampled_from(["group", "none"]),
)
@settings(max_examples=60, deadline=None)
def test_advantages_sum_to_zero_and_ignore_a_shift(rewards: list[float], shift: float, scale: str) -> None:
    r = torch.tensor(rewards)
    a = group_advantages(r, group_sizes=[len(rewards)], scale=scale)
    spread = (r.max() - r.min()).item()
    assert a.double().sum().abs() <= 1e-4 * len(rewards) * max(1.0, a.abs().max().item())
    if spread > 1e-2:
        shifted = group_advantages(r + shift, group_sizes=[len(rewards)], scale=scale)
        torch.testing.assert_close(shifted, a, rtol=5e-3, atol=5e-3 * max(1.0, a.abs().max().item()))


def test_groups_do_not_mix() -> None:
    rewards = torch.randn(12)
    alone = torch.cat([group_advantages(part, group_sizes=[len(part)]) for part in rewards.split([5, 3, 4])])
    assert torch.equal(group_advantages(rewards, group_sizes=[5, 3, 4]), alone)


def test_non_contiguous_rewards() -> None:
    wide = torch.randn(12, 2)
    assert torch.equal(
        group_advantages(wide[:, 0], group_sizes=4), group_advantages(wide[:, 0].contiguous(), group_sizes=4)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_rewards_of_other_dtypes(dtype: torch.dtype) -> None:
    rewards = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0]).to(dtype)
    expected = by_hand(rewards.float(), [4, 4], "group")
    torch.testing.assert_close(group_advantages(rewards, group_sizes=4).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused_with_their_index(bad: float) -> None:
    rewards = torch.zeros(8)
    rewards[5] = bad
    with pytest.raises(ValueError, match=r"rewards.*5"):
        group_advantages(rewards, group_sizes=4)


def test_nan_in_one_of_several_rewards_is_refused_with_its_index() -> None:
    rewards = torch.zeros(8, 2)
    rewards[6, 1] = float("nan")
    with pytest.raises(ValueError, match=r"rewards.*6.*1"):
        group_advantages(rewards, group_sizes=4)


@pytest.mark.parametrize(
    ("rewards", "options", "named"),
    [
        (torch.zeros(9), {"group_sizes": 4}, "group_sizes"),
        (torch.zeros(9), {"group_sizes": [4, 4]}, "group_sizes"),
        (torch.zeros(8), {"group_sizes": [8, 0]}, "group_sizes"),
        (torch.zeros(8), {"group_sizes": [9, -1]}, "group_sizes"),
        (torch.zeros(8), {"group_sizes": 0}, "group_sizes"),
        (torch.zeros(8), {"group_sizes": 4.5}, "group_sizes"),
        (torch.zeros(8), {"group_sizes": [3.7, 5.2]}, "group_sizes"),
        (torch.zeros(9), {"group_sizes": torch.tensor(4)}, "group_sizes 4 does not divide 9"),
        (torch.zeros(2, 2, 2), {"group_sizes": 2}, "rewards"),
        (torch.zeros(8), {"group_sizes": 4, "scale": "groups"}, "scale"),
        (torch.zeros(8), {"group_sizes": 4, "epsilon": -1.0}, "epsilon"),
        (torch.zeros(8, 2), {"group_sizes": 4, "weights": torch.ones(3)}, "weights"),
        (torch.zeros(8, dtype=torch.complex64), {"group_sizes": 4}, "rewards"),
    ],
    ids=lambda value: str(value) if not isinstance(value, Tensor) else f"rewards{list(value.shape)}",
)
def test_bad_input_is_refused_by_name(rewards: Tensor, options: dict, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        group_advantages(rewards, **options)
