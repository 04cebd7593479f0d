"""The rewards of a run, by name and weight."""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from grpo_fast.errors import BadReward
from grpo_fast.rewards.accuracy import check_gold
from grpo_fast.rewards.base import Ask, Reward, score
from grpo_fast.rewards.builtin import builtins
from grpo_fast.rewards.hooks import load_hook
from grpo_fast.rewards.pool import Job, RewardPool
from grpo_fast.types import Sample

log = logging.getLogger(__name__)
TIMED_OUT = 0.0  # what a completion gets for a reward that was given up


class RewardSet:
    """Scores groups of completions. Slow rewards (hooks, formulas) run in `workers` processes, each call no longer than
    `timeout` seconds: what takes longer is killed, logged with its sample, counted in `timeouts`, and scored 0. With no
    workers they run in this process, where nothing can end them.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float], pool: RewardPool | None) -> None:
        self.names = tuple(reward.name for reward in rewards)
        self.weights = torch.tensor(list(weights), dtype=torch.float32)  # [K]
        self.timeouts: Counter[str] = Counter()  # completions given up, by reward
        self._rewards, self._pool = tuple(rewards), pool

    @classmethod
    def of(
        cls,
        specs: Sequence[str],
        weights: Sequence[float] = (),
        *,
        style: str = "think",
        timeout: float = 30.0,
        workers: int = 0,
    ) -> RewardSet:
        """`specs`: accuracy, format, repetition, length, or FILE.py:FUNCTION. `style`: what the prompt asks for."""
        if not specs:
            raise BadReward("there is no reward: name at least one, such as accuracy")
        if weights and len(weights) != len(specs):
            raise BadReward(f"{len(weights)} weights for {len(specs)} rewards ({', '.join(specs)})")
        if not all(math.isfinite(weight) for weight in weights):
            raise BadReward(f"reward weights have to be finite, got {list(weights)}")
        if not timeout > 0 or workers < 0:
            raise BadReward(f"a reward needs a timeout above 0 and 0 or more workers, got {timeout} and {workers}")
        rewards = _built(tuple(specs), style)
        pool = RewardPool(partial(_built, tuple(specs), style), workers, timeout) if workers else None
        return cls(rewards, list(weights) or [1.0] * len(specs), pool)

    def check(self, sample: Sample) -> None:
        """Raises BadReward where a sample can never be rewarded for accuracy."""
        if "accuracy" in self.names:
            check_gold(sample)

    def __call__(
        self,
        samples: Sequence[Sample],
        completions: Sequence[Sequence[str]],  # a group for each sample
        *,
        prompts: Sequence[str] = (),  # as rendered, for rewards that read them
        completion_ids: Sequence[Sequence[Sequence[int]]] = (),  # the tokens, for rewards that count them
    ) -> list[dict[str, Tensor]]:  # for each sample: name → [G] fp32, NaN where a reward does not apply
        asks = _asks(samples, completions, prompts, completion_ids)
        rows: list[dict[str, list[float]]] = [{} for _ in asks]
        apart: list[tuple[int, Job]] = []
        for k, reward in enumerate(self._rewards):
            for i, ask in enumerate(asks):
                if self._pool is None or not reward.is_slow(ask.sample):
                    rows[i][reward.name] = score(reward, ask)
                    continue
                rows[i][reward.name] = []
                ask = ask if reward.wants_images else ask.without_images()
                parts = [ask.only(j) for j in range(len(ask.completions))] if reward.one_by_one else [ask]
                apart += [(i, Job(k, reward.name, part)) for part in parts]
        if self._pool is not None and apart:
            found = self._pool.run([job for _, job in apart])
            for (i, job), values in zip(apart, found, strict=True):
                rows[i][job.name] += self._given_up(job) if values is None else values
        return [{name: torch.tensor(row[name], dtype=torch.float32) for name in self.names} for row in rows]

    def total(self, rewards: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum [G]; a reward that does not apply to a completion has no weight there."""
        table = torch.stack([rewards[name] for name in self.names])  # [K, G]
        return (table.nan_to_num(nan=0.0) * self.weights[:, None]).sum(0)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> RewardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _given_up(self, job: Job) -> list[float]:
        ask = job.ask
        which = f"completion {ask.first + 1}" if len(ask.completions) == 1 else f"{len(ask.completions)} completions"
        log.warning("reward %s took too long and was given up: sample %s, %s", job.name, ask.sample.id, which)
        self.timeouts[job.name] += len(ask.completions)
        return [TIMED_OUT] * len(ask.completions)


def _built(specs: tuple[str, ...], style: str) -> list[Reward]:
    known = builtins(style)
    rewards: list[Reward] = []
    for spec in specs:
        if ".py:" in spec:
            rewards.append(load_hook(spec))
        elif spec.endswith(".py"):
            raise BadReward(f"reward {spec}: say which function, as in {spec}:FUNCTION")
        elif spec in known:
            rewards.append(known[spec])
        else:
            near = difflib.get_close_matches(spec, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadReward(f"unknown reward {spec!r}: {hint}There are {', '.join(known)} and FILE.py:FUNCTION")
    names = [reward.name for reward in rewards]
    for name, count in Counter(names).items():
        if count > 1:
            raise BadReward(f"two rewards are called {name!r}: give each another name")
    return rewards


def _asks(
    samples: Sequence[Sample],
    completions: Sequence[Sequence[str]],
    prompts: Sequence[str],
    completion_ids: Sequence[Sequence[Sequence[int]]],
) -> list[Ask]:
    for what, given in (("completions", completions), ("prompts", prompts), ("completion_ids", completion_ids)):
        if len(given) != len(samples) and (given or what == "completions"):
            raise ValueError(f"{len(given)} {what} for {len(samples)} samples")
    return [
        Ask(
            sample,
            tuple(completions[i]),
            prompts[i] if prompts else "",
            tuple(completion_ids[i]) if completion_ids else None,
        )
        for i, sample in enumerate(samples)
    ]
