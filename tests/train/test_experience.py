"""From questions drawn to advantages: what is sampled, rewarded, compared and left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train import lab

from grpo_fast import group_advantages
from grpo_fast.data.phantom import phantom
from grpo_fast.rewards import RewardSet
from grpo_fast.rollout import Engine
from grpo_fast.train.draws import Draws
from grpo_fast.train.experience import Collector, hash_of
from grpo_fast.train.settings import RolloutSettings, Settings

BY_LENGTH = """
def by_length(completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]

def sometimes(completions, **columns):
    return [None if i % 2 else 1.0 for i, _ in enumerate(completions)]

def never_differs(completions, **columns):
    return [1.0 for _ in completions]

def by_tokens(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]

def compute_score(reward_inputs):
    return [{"overall": float(one["response_length"])} for one in reward_inputs]
"""


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    (tmp_path / "hooks.py").write_text(BY_LENGTH)
    return tmp_path / "hooks.py"


def collector(names: list[str], **rollout) -> Collector:
    chosen: Settings = lab.settings(max_completion_length=6)
    chosen.rollout = RolloutSettings(**{"prompts_per_step": 3, "group_size": 4, **rollout})
    policy = lab.policy(chosen)
    processor = lab.processor()
    draws = Draws(phantom("train", 32), processor, lab.PLAIN, lab.ALONE, seed=0, stop_on_bad=False)
    rewards = RewardSet.of(names, style="think")
    return Collector(chosen, Engine(policy, tokenizer=processor.tokenizer), draws, rewards, lab.ALONE)


def test_a_step_is_what_was_asked_for(hooks: Path) -> None:
    collect = collector([f"{hooks}:by_length"])
    found = collect()
    assert len(found.scored) == 3 and found.drawn == 3
    for one in found.scored:
        texts = [collect.draws.processor.tokenizer.decode(c, skip_special_tokens=True) for c in one.group.completions]
        assert list(one.texts) == texts and len(texts) == 4
        lengths = torch.tensor([float(len(text)) for text in texts])
        assert torch.equal(one.total, lengths)
        assert one.group.advantages is not None
        assert torch.allclose(one.group.advantages, group_advantages(lengths, 4))
        assert one.group.sampler_logps is None
    every = torch.cat([one.total for one in found.scored])
    assert found.metrics["reward"] == pytest.approx(every.mean().item())
    tokens = [c.numel() for one in found.scored for c in one.group.completions]
    assert found.metrics["length"] == pytest.approx(sum(tokens) / len(tokens))


@pytest.mark.parametrize("name", ["by_tokens", "compute_score"])
def test_rewards_are_told_the_sampled_tokens(hooks: Path, name: str) -> None:
    """TRL's overlong punishment and EasyR1's count them."""
    for one in collector([f"{hooks}:{name}"])().scored:
        assert one.total.tolist() == [float(tokens.numel()) for tokens in one.group.completions]


def test_the_same_question_gets_the_same_completions_in_any_company(hooks: Path) -> None:
    three = collector([f"{hooks}:by_length"])()
    one = collector([f"{hooks}:by_length"], prompts_per_step=1)()
    assert one.scored[0].texts == three.scored[0].texts


def test_a_reward_that_does_not_apply_adds_nothing(hooks: Path) -> None:
    found = collector([f"{hooks}:sometimes", f"{hooks}:by_length"])()
    for one in found.scored:
        own, length = (one.rewards[name] for name in one.rewards)
        assert own.isnan().any()
        assert torch.equal(one.total, own.nan_to_num(0.0) + length)


def test_groups_that_tell_nothing_are_left_out_and_others_drawn(hooks: Path) -> None:
    found = collector([f"{hooks}:by_length"], filter_groups=True, filter_rounds=6)()
    assert found.scored and all(one.total.max() > one.total.min() for one in found.scored)
    nothing = collector([f"{hooks}:never_differs"], filter_groups=True, filter_rounds=3)()
    assert nothing.drawn == 9  # three rounds, then it makes do
    assert all((one.group.advantages == 0).all() for one in nothing.scored) and nothing.scored
    assert nothing.metrics["groups_without_spread"] == 1.0


def test_seeds_of_questions_do_not_meet() -> None:
    assert len({hash_of(seed, number) for seed in range(50) for number in range(200)}) == 10_000
