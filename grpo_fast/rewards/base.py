"""What a reward is asked, and what it may answer."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol

from grpo_fast.errors import GRPOFastError, RunFailed
from grpo_fast.types import Sample

NOT_APPLICABLE = math.nan  # what a reward's None becomes
SHOWN = 400  # characters of a completion in an error


@dataclass(frozen=True, slots=True)
class Ask:
    """Completions of one sample: the group's, or a single one of them."""

    sample: Sample
    completions: tuple[str, ...]
    prompt: str = ""  # rendered; "" where the caller has none
    completion_ids: tuple[Sequence[int], ...] | None = None
    first: int = 0  # place of the first one in its group

    def only(self, i: int) -> Ask:
        ids = None if self.completion_ids is None else (self.completion_ids[i],)
        return replace(self, completions=(self.completions[i],), completion_ids=ids, first=self.first + i)

    def without_images(self) -> Ask:
        return replace(self, sample=replace(self.sample, images=(), videos=()))


class Reward(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def one_by_one(self) -> bool: ...  # completions of a group do not see each other

    @property
    def wants_images(self) -> bool: ...

    def is_slow(self, sample: Sample) -> bool: ...

    def __call__(self, ask: Ask) -> Any: ...  # a list, tensor or array of one reward per completion


def score(reward: Reward, ask: Ask) -> list[float]:
    """One finite number, or NaN for "not applicable", per completion. Anything else stops the run, named."""
    try:
        given = reward(ask)
    except GRPOFastError:
        raise
    except (Exception, SystemExit) as error:  # a user's own function: anything may come out of it
        raise RunFailed(f"reward {reward.name} raised {_told(error)} for {_culprit(reward, ask)}") from error
    if hasattr(given, "flatten"):  # a tensor or an array
        given = given.flatten().tolist()
    if not isinstance(given, Sequence):
        raise RunFailed(f"reward {reward.name} returned {type(given).__name__}, not a list, for {_named(ask, 0)}")
    values = list(given)
    if len(values) != len(ask.completions):
        raise RunFailed(
            f"reward {reward.name} returned {len(values)} rewards for {len(ask.completions)} completions of sample "
            f"{ask.sample.id}: it has to return one each"
        )
    return [_number(reward, ask, i, value) for i, value in enumerate(values)]


def _number(reward: Reward, ask: Ask, i: int, value: Any) -> float:
    if value is None:
        return NOT_APPLICABLE
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real) or not math.isfinite(value):
        raise RunFailed(f"reward {reward.name} returned {value!r}, which is no finite number, for {_named(ask, i)}")
    return float(value)


def _culprit(reward: Reward, ask: Ask) -> str:
    if len(ask.completions) == 1:
        return _named(ask, 0)
    for i in range(len(ask.completions)):
        try:
            reward(ask.only(i))
        except (Exception, SystemExit):
            return _named(ask, i)
    return f"the group of sample {ask.sample.id}, though for none of its completions alone"


def _named(ask: Ask, i: int) -> str:
    text = ask.completions[i]
    shown = text if len(text) <= SHOWN else text[:SHOWN] + f"… ({len(text)} characters)"
    return f"sample {ask.sample.id}, completion {ask.first + i + 1}: {shown!r}"


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
