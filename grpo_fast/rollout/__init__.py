"""Generate groups of completions: every image and prompt once, log-probs that a trainer reproduces."""

from grpo_fast.rollout.engine import Engine, EngineOptions, RolloutStats
from grpo_fast.rollout.sampling import SamplingParams

__all__ = ["Engine", "EngineOptions", "RolloutStats", "SamplingParams"]
