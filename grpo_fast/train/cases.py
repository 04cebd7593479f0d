"""The lines of samples.jsonl: a question, what was answered, and what that was worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_fast.types import Group, Sample

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from grpo_fast.evaluate.ask import Asked

PICTURE_SIDE = 256


def case(
    step: int, phase: str, sample: Sample, completions: Sequence[Mapping[str, Any]], pictures: Sequence[str]
) -> dict[str, Any]:
    from grpo_fast.rewards.accuracy import question_of

    return {
        "step": step,
        "phase": phase,
        "id": sample.id,
        "modality": sample.meta.get("modality"),
        "question_type": sample.meta.get("question_type"),
        "question": question_of(sample),
        "answer": None if sample.answer is None else str(sample.answer),
        "images": list(pictures),
        "completions": list(completions),
    }


def completions_of(
    group: Group,
    texts: Sequence[str],
    rewards: Mapping[str, Tensor],  # name → [G]
    total: Tensor | None,  # [G]; None: the plain sum of the rewards
    advantages: Tensor | None,  # [G]
    correct: Sequence[bool] | None,
) -> list[dict[str, Any]]:
    by_name = {name: values.tolist() for name, values in rewards.items()}
    found = []
    for place, (text, tokens) in enumerate(zip(texts, group.completions, strict=True)):
        own = {name: number(values[place]) for name, values in by_name.items()}
        found.append(
            {
                "text": text,
                "rewards": own,
                "reward": _sum(own) if total is None else number(total[place]),
                "advantage": None if advantages is None else number(advantages[place]),
                "tokens": tokens.numel(),
                "finished": bool(group.finished[place]) if group.finished else None,
                "correct": None if correct is None else bool(correct[place]),
            }
        )
    return found


def completion_of(asked: Asked) -> dict[str, Any]:
    rewards = {"accuracy": number(asked.strict), "format": number(asked.formatted)}
    return {
        "text": asked.completion,
        "rewards": rewards,
        "reward": _sum(rewards),
        "advantage": None,
        "tokens": asked.tokens,
        "finished": asked.finished,
        "correct": asked.strict,
    }


def number(value: Any) -> float | None:
    """Equal values give equal bytes: 1, 1.0 and a tensor of 1 are 1.0, and -0.0 is 0.0; what is not finite is null."""
    plain = float(value)
    return plain + 0.0 if math.isfinite(plain) else None


def small(load: Callable[[], Image], where: str) -> Image:
    from grpo_fast.policy.images import decoded, to_rgb

    picture = to_rgb(decoded(load, where), where).copy()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture


def _sum(rewards: Mapping[str, float | None]) -> float:
    return math.fsum(x for x in rewards.values() if x is not None)
