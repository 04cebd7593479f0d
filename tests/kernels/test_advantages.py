"""The Triton group advantages against the definition in fp64, group by group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grpo_fast.kernels.advantages import group_advantages


def by_hand(rewards: Tensor, sizes: list[int], scale: str, epsilon: float) -> Tensor:
    rewards = rewards.double()
    whole = rewards.std() if len(rewards) > 1 else rewards.new_zeros(())
    parts = []
    for group in rewards.split(sizes):
        own = group.std() if len(group) > 1 else group.new_zeros(())
        divisor = {"group": own + epsilon, "batch": whole + epsilon, "none": 1.0}[scale]
        parts.append((group - group.mean()) / divisor)
    return torch.cat(parts)


def offsets_of(sizes: list[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=dtype, device=device)


# equal, ragged with groups of one, one group longer than the kernel's block, a single reward
@pytest.mark.parametrize("sizes", [[4, 4], [3, 1, 7, 1], [131, 5], [1]], ids=str)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equals_the_definition(sizes: list[int], scale: str, device: torch.device) -> None:
    rewards = torch.randn(sum(sizes), device=device)
    for shift in (0.0, 1000.0):  # a mean that dwarfs the spread
        r = rewards + shift
        got = group_advantages(r, offsets_of(sizes, device, torch.int32), scale, 1e-4)  # type: ignore[arg-type]
        torch.testing.assert_close(got.double(), by_hand(r, sizes, scale, 1e-4), rtol=3e-7, atol=3e-7)


# 0.1 has no exact binary form, and a rest of one bit would be multiplied by 1 / epsilon
@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e7 / 3])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_and_groups_of_one_give_exactly_zero(value: float, scale: str, device: torch.device) -> None:
    rewards = torch.tensor([value] * 7 + [0.0, 1.0] + [5.5], device=device)
    got = group_advantages(rewards, offsets_of([7, 2, 1], device), scale)  # type: ignore[arg-type]
    assert not got[:7].any() and got[7] < 0 < got[8] and got[9] == 0


def test_nan_stays_in_its_group(device: torch.device) -> None:
    rewards = torch.tensor([0.0, float("nan"), 1.0, 0.0, 1.0], device=device)
    got = group_advantages(rewards, offsets_of([3, 2], device))
    assert got[:3].isnan().all() and got[3:].isfinite().all()


def test_empty_groups_unaligned_rewards_and_out(device: torch.device) -> None:
    rewards = torch.randn(8, device=device)
    out = torch.empty(7, device=device)
    got = group_advantages(rewards[1:], offsets_of([0, 3, 0, 4, 0], device), out=out)
    assert got is out
    torch.testing.assert_close(out.double(), by_hand(rewards[1:], [3, 4], "group", 1e-4), rtol=3e-7, atol=3e-7)
    assert group_advantages(rewards[:0], offsets_of([], device)).shape == (0,)


def test_bad_input_is_refused_by_name(device: torch.device) -> None:
    good, offsets = torch.zeros(4, device=device), offsets_of([4], device)
    for rewards, at, scale, named in (
        (good.double(), offsets, "group", "rewards"),
        (good, offsets.float(), "group", "offsets"),
        (good, offsets, "groups", "scale"),
    ):
        with pytest.raises(ValueError, match=named):
            group_advantages(rewards, at, scale)  # type: ignore[arg-type]
