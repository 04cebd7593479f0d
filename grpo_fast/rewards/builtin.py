"""The rewards that are named by a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_fast.rewards import accuracy
from grpo_fast.rewards.base import Ask
from grpo_fast.rewards.format import FORMS, follows_format
from grpo_fast.rewards.length import length
from grpo_fast.rewards.repetition import repetition
from grpo_fast.types import Sample


@dataclass(frozen=True, slots=True)
class Builtin:
    name: str
    function: Callable[[Sample, str], float]
    one_by_one: bool = True
    wants_images: bool = False

    def is_slow(self, sample: Sample) -> bool:
        return self.name == "accuracy" and accuracy.is_slow(sample)

    def __call__(self, ask: Ask) -> list[float]:
        return [self.function(ask.sample, text) for text in ask.completions]


def builtins(style: str) -> dict[str, Builtin]:
    """A prompt that asks for no tags (plain, a template) is answered without them: accuracy is then lenient."""
    lenient = style not in FORMS
    functions: dict[str, Callable[[Sample, str], float]] = {
        "accuracy": lambda sample, text: accuracy.accuracy(sample, text, lenient=lenient),
        "format": lambda _, text: float(follows_format(text, style)),
        "repetition": lambda _, text: repetition(text),
        "length": lambda _, text: length(text),
    }
    return {name: Builtin(name, function) for name, function in functions.items()}
