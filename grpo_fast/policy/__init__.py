"""Score and train a vision-language model on packed groups: one vision encode and one prompt per group."""

from grpo_fast.policy.checks import PromptSpec
from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import PackedStep, Packer, split_rows

__all__ = ["GRPOPolicy", "PackedStep", "Packer", "PromptSpec", "split_rows"]
