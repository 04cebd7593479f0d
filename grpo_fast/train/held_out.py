"""Held-out questions, asked greedily between steps, each rank its share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from grpo_fast.data.prompts import PromptStyle
from grpo_fast.evaluate.ask import Asked, ask
from grpo_fast.policy.processor import Processor
from grpo_fast.rollout import Engine, RolloutStats
from grpo_fast.train.draws import UNUSABLE, Skipped
from grpo_fast.train.ranks import Ranks
from grpo_fast.types import Prompt, Sample

AT_ONCE = 64  # prompts prepared before they are asked
KEPT_BYTES = 256 << 20  # of pixels, so that the next look need not prepare them again


class HeldOut:
    """The same `count` of `samples` each time, chosen by the seed; 0: all of them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        style: PromptStyle,
        ranks: Ranks,
        *,
        count: int,
        seed: int,
        max_tokens: int,
        watch: Callable[[RolloutStats], None] | None = None,
    ) -> None:
        self.samples, self.processor, self.style, self.ranks = samples, processor, style, ranks
        self.max_tokens, self.watch = max_tokens, watch
        size = len(samples) if count == 0 else min(count, len(samples))
        chosen = np.random.default_rng([seed & (1 << 63) - 1, 1]).permutation(len(samples))[:size]
        self.places: list[int] = sorted(int(place) for place in chosen)
        self.skipped = Skipped()
        self._prepared: dict[int, Prompt] = {}  # by place, as many as fit
        self._free = KEPT_BYTES

    def _prompt(self, place: int) -> Prompt:
        if place in self._prepared:
            return self._prepared[place]
        prompt = self.processor(self.style(self.samples[place]))
        self._free -= sum(one.pixels.nbytes for one in prompt.vision)
        if self._free >= 0:
            self._prepared[place] = prompt
        return prompt

    def __call__(self, engine: Engine) -> list[Asked]:
        """Every rank gets the answers to all questions, in their order."""
        mine = list(self.ranks.share(self.places))
        answers: list[tuple[int, Asked]] = []
        reasons: list[str] = []
        most = math.ceil(len(self.places) / self.ranks.world)  # of any rank: all gather sharded weights together
        for first in range(0, most, AT_ONCE):
            prompts: list[Prompt] = []
            kept: list[int] = []
            for place in mine[first : first + AT_ONCE]:
                try:
                    prompts.append(self._prompt(place))
                    kept.append(place)
                except UNUSABLE as error:
                    reasons.append(str(error))
            asked = ask(engine, prompts, style=self.style.form, max_tokens=self.max_tokens, watch=self.watch)
            answers += zip(kept, asked, strict=True)
        if self.skipped.count == 0:
            self.skipped.note([reason for rank in self.ranks.gather(reasons) for reason in rank])
        if self.ranks.world == 1:
            return [one for _, one in answers]
        light = [(place, replace(one, sample=_without_loaders(one.sample))) for place, one in answers]
        every = sorted((pair for rank in self.ranks.gather(light) for pair in rank), key=lambda pair: pair[0])
        return [replace(one, sample=self.samples[place]) for place, one in every]


def _without_loaders(sample: Sample) -> Sample:
    return Sample(sample.id, (), answer=sample.answer)
