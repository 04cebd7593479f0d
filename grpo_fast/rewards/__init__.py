"""What a completion is worth: accuracy, format, repetition, length, and functions from the user's own files."""

from grpo_fast.rewards.accuracy import check_gold
from grpo_fast.rewards.reward_set import RewardSet

__all__ = ["RewardSet", "check_gold"]
