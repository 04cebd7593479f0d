"""Which question comes when: a function of the seed alone, so that a resumed run and one on more ranks go on alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from grpo_fast.data.prompts import PromptStyle
from grpo_fast.errors import BadData, BadImage, BadReward, PromptMismatch, PromptTooLong, RunFailed
from grpo_fast.policy.processor import Processor
from grpo_fast.train.ranks import Ranks
from grpo_fast.types import Prompt, Sample

UNUSABLE = (BadData, BadImage, BadReward, PromptMismatch, PromptTooLong)
GIVE_UP = 1000  # records of one step that cannot be used


@dataclass(frozen=True, slots=True)
class Drawn:
    number: int  # how many questions were drawn before it: the seed of its completions
    prompt: Prompt


@dataclass(slots=True)
class Skipped:
    """Records that could not be used, by reason; `new` are those not yet shown."""

    count: int = 0
    new: list[str] = field(default_factory=list)

    def note(self, reasons: Sequence[str]) -> None:
        self.count += len(reasons)
        self.new += reasons

    def take_new(self) -> list[str]:
        taken, self.new = self.new, []
        return taken


class Draws:
    """Questions in the order of a new permutation each epoch. All ranks call it together, each gets its share."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        style: PromptStyle,
        ranks: Ranks,
        *,
        seed: int,
        stop_on_bad: bool,
        check: Callable[[Sample], None] | None = None,  # of what else a sample must have
    ) -> None:
        if len(samples) == 0:
            raise BadData("there are no questions to train on")
        self.samples, self.processor, self.style, self.ranks = samples, processor, style, ranks
        self.seed, self.stop_on_bad, self.check = seed, stop_on_bad, check
        self.cursor = 0
        self.skipped = Skipped()

    def take(self, count: int) -> list[Drawn]:
        """This rank's share of the next `count` usable questions. Who met one that cannot be used gets another, so that
        every rank has its number."""
        mine, bad = self._prepare(self.ranks.share(self._next(count)))
        refused = 0
        while True:
            lost: list[list[str]] = self.ranks.gather(bad)
            if not any(lost):
                return mine
            reasons = [reason for rank in lost for reason in rank]
            if self.stop_on_bad:
                raise BadData(reasons[0])
            self.skipped.note(reasons)
            refused += len(reasons)
            if refused >= count + min(GIVE_UP, 2 * len(self.samples)):
                raise RunFailed(f"{refused} records cannot be used in a step of {count} questions; {reasons[-1]}")
            first = sum(map(len, lost[: self.ranks.rank]))
            found, bad = self._prepare(self._next(len(reasons))[first : first + len(bad)])
            mine += found

    def _next(self, count: int) -> range:
        self.cursor += count
        return range(self.cursor - count, self.cursor)

    def sample(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.samples))
        return self.samples[int(_order(self.seed, epoch, len(self.samples))[place])]

    def _prepare(self, numbers: Sequence[int]) -> tuple[list[Drawn], list[str]]:
        found: list[Drawn] = []
        reasons: list[str] = []
        for number in numbers:
            try:
                sample = self.sample(number)
                if self.check is not None:
                    self.check(sample)
                found.append(Drawn(number, self.processor(self.style(sample))))
            except UNUSABLE as error:
                reasons.append(str(error))
        return found, reasons


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed & (1 << 63) - 1, epoch]).permutation(count)
