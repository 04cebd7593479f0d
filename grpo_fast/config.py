"""Settings of the loss: TRL's names, meanings and defaults (GRPOConfig 1.16), validated once."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
RatioLevel = Literal["token", "sequence"]
SamplerMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
RewardScale = Literal["group", "batch", "none"]

CLIPPED = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "luspo"})
WINDOW_NORMALISED = frozenset({"dapo", "cispo", "vespo"})


def refuse_unknown(given: Mapping[str, Any], known: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise TypeError(f"{what} has no option {name!r}{hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    loss_type: LossType = "dapo"
    importance_sampling_level: RatioLevel = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: the same as epsilon
    delta: float | None = None  # upper bound of the unclipped ratio (two-sided clipping)
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    temperature: float = 1.0
    max_completion_length: int | None = 512  # only dr_grpo divides by it
    gradient_accumulation_steps: int = 1
    mask_truncated_completions: bool = False
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    use_adaptive_entropy: bool = False
    entropy_coef_min: float = 0.0
    entropy_coef_max: float = 1.0
    entropy_coef_delta: float = 0.005
    entropy_target: float = 0.2
    off_policy_mask_threshold: float | None = None
    importance_sampling_correction: bool = True
    importance_sampling_mode: SamplerMode = "sequence_mask"
    importance_sampling_clip_max: float | None = 3.0
    importance_sampling_clip_min: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    softcap: float | None = None  # logits become softcap * tanh(logits / softcap) before the temperature

    def __post_init__(self) -> None:
        _one_of("loss_type", self.loss_type, get_args(LossType))
        _one_of("importance_sampling_level", self.importance_sampling_level, get_args(RatioLevel))
        _one_of("importance_sampling_mode", self.importance_sampling_mode, get_args(SamplerMode))
        for name in ("epsilon", "epsilon_high", "beta", "off_policy_mask_threshold"):
            _at_least(name, getattr(self, name), 0.0)
        for name in ("temperature", "sapo_temperature_pos", "sapo_temperature_neg", "softcap", "delta"):
            _positive(name, getattr(self, name))
        for name in ("max_completion_length", "gradient_accumulation_steps"):
            _at_least(name, getattr(self, name), 1)
        if not 0.0 <= self.top_entropy_quantile <= 1.0:
            raise ValueError(f"top_entropy_quantile must lie in [0, 1], got {self.top_entropy_quantile}")
        if self.delta is not None and self.loss_type not in CLIPPED:
            raise ValueError(
                f"delta bounds the clipped losses ({', '.join(sorted(CLIPPED))}); {self.loss_type} has none"
            )
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low > high:
            raise ValueError(f"importance_sampling_clip_min ({low}) is above importance_sampling_clip_max ({high})")
        if self.importance_sampling_mode.endswith("truncate") and low is None and high is None:
            raise ValueError(
                f"importance_sampling_mode={self.importance_sampling_mode!r} needs importance_sampling_clip_max or "
                "importance_sampling_clip_min"
            )
        if self.use_adaptive_entropy and not self.entropy_coef_min <= self.entropy_coef_max:
            raise ValueError(
                f"entropy_coef_min ({self.entropy_coef_min}) is above entropy_coef_max ({self.entropy_coef_max})"
            )
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            raise ValueError("loss_type='dr_grpo' divides by max_completion_length: give it")

    @property
    def clip_low(self) -> float:
        return 1.0 - self.epsilon

    @property
    def clip_high(self) -> float:
        """Upper end of the clip range; cispo reads epsilon_high as the ratio's cap itself."""
        return 1.0 + self.resolved_epsilon_high

    @property
    def resolved_epsilon_high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def entropy_bonus(self) -> bool:
        return self.entropy_coef != 0.0 or self.use_adaptive_entropy

    def to_json(self) -> str:
        """One string that a custom op can carry; `options_from_json` gives the same object back."""
        return json.dumps(asdict(self))


@lru_cache(maxsize=64)
def options_from_json(text: str) -> LossOptions:
    return LossOptions(**json.loads(text))


def loss_options(**given: Any) -> LossOptions:
    refuse_unknown(given, [field.name for field in fields(LossOptions)], "GRPOLoss")
    return LossOptions(**given)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{hint}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value


def _at_least(name: str, value: float | None, low: float) -> None:
    if value is not None and _number(name, value) < low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and _number(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
