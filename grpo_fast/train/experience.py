"""A step's experience: questions drawn, completions sampled, rewarded and compared within their group."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grpo_fast.ops.advantages import group_advantages
from grpo_fast.rewards import RewardSet
from grpo_fast.rollout import Engine, RolloutStats, SamplingParams
from grpo_fast.train.draws import Drawn, Draws
from grpo_fast.train.ranks import Ranks
from grpo_fast.train.settings import Settings
from grpo_fast.types import Group

Rewards = Mapping[str, Tensor]  # name → [G]


@dataclass(frozen=True, slots=True)
class Scored:
    """A group, what its completions say, and what they were given for it."""

    group: Group
    texts: tuple[str, ...]
    rewards: Rewards
    total: Tensor  # [G] fp32, summed by weight


@dataclass(slots=True)
class Experience:
    """This rank's part of a step."""

    scored: list[Scored]
    spare: Scored | None  # for a rank whose groups were all left out
    drawn: int  # groups sampled by all ranks, those left out included
    metrics: dict[str, float] = field(default_factory=dict)  # over all ranks
    seconds: dict[str, float] = field(default_factory=dict)
    sampled_tokens: int = 0  # on this rank


class Collector:
    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        draws: Draws,
        rewards: RewardSet,
        ranks: Ranks,
        watch: Callable[[RolloutStats], None] | None = None,
    ) -> None:
        self.settings, self.engine, self.draws, self.rewards = settings, engine, draws, rewards
        self.ranks, self.watch = ranks, watch
        self.sampling = sampling_of(settings)

    def __call__(self) -> Experience:
        rollout = self.settings.rollout
        seconds = {"rollout_seconds": 0.0, "reward_seconds": 0.0}
        kept: list[Scored] = []
        spare: Scored | None = None
        seen: list[Scored] = []
        drawn = tokens = 0
        for _ in range(rollout.filter_rounds if rollout.filter_groups else 1):
            missing = rollout.prompts_per_step - sum(self.ranks.gather(len(kept)))
            if missing <= 0:
                break
            missing = max(missing, self.ranks.world)  # every rank takes part in a rollout
            start = time.perf_counter()
            groups = self._sample(self.draws.take(missing))
            middle = time.perf_counter()
            found = self._score(groups)
            seconds["rollout_seconds"] += middle - start
            seconds["reward_seconds"] += time.perf_counter() - middle
            tokens += self.engine.stats.sampled_tokens
            drawn += missing
            seen += found
            spare = spare or next(iter(found), None)
            kept += [one for one in found if not rollout.filter_groups or self._tells(one)]
        if rollout.filter_groups and not any(self.ranks.gather(bool(kept))):
            kept = seen  # nothing to learn from anywhere: a step of zero gradient
        return Experience(self._compared(kept), spare, drawn, self._metrics(seen), seconds, tokens)

    def _sample(self, drawn: Sequence[Drawn]) -> list[Group]:
        seeds = [hash_of(self.settings.run.seed, one.number) for one in drawn]
        group_size = self.settings.rollout.group_size
        prompts = [one.prompt for one in drawn]
        groups = self.engine.generate(prompts, group_size, self.sampling, seeds=seeds, watch=self.watch)
        keep = self.settings.rollout.sampler_correction
        return groups if keep else [replace(group, sampler_logps=None) for group in groups]

    def _score(self, groups: Sequence[Group]) -> list[Scored]:
        texts = [self.texts(group) for group in groups]
        samples = [group.prompt.sample for group in groups]
        assert all(sample is not None for sample in samples)
        ids = [[tokens.tolist() for tokens in group.completions] for group in groups]
        given = self.rewards([sample for sample in samples if sample is not None], texts, completion_ids=ids)
        return [
            Scored(replace(group, rewards=rewards), text, rewards, self.rewards.total(rewards))
            for group, text, rewards in zip(groups, texts, given, strict=True)
        ]

    def texts(self, group: Group) -> tuple[str, ...]:
        tokenizer = self.draws.processor.tokenizer
        return tuple(str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)) for tokens in group.completions)

    def _tells(self, scored: Scored) -> bool:
        """Whether the group can teach: its rewards differ, and it is neither too hard nor too easy."""
        low, high = self.settings.rollout.filter_low, self.settings.rollout.filter_high
        accuracy = scored.rewards.get("accuracy")
        mean = None if accuracy is None else accuracy.mean().item()
        outside = mean is not None and ((low is not None and mean < low) or (high is not None and mean > high))
        return not outside and bool(scored.total.max() > scored.total.min())

    def _compared(self, kept: Sequence[Scored]) -> list[Scored]:
        """Advantages over the groups of all ranks, since the deviation may be the batch's."""
        shares = self.ranks.gather([one.total.tolist() for one in kept])
        every = [total for share in shares for total in share]
        if not every:
            return []
        sizes = [len(total) for total in every]
        rewards = torch.tensor([reward for total in every for reward in total])
        advantages = group_advantages(rewards, sizes, scale=self.settings.rewards.scale_rewards).split(sizes)
        first = sum(map(len, shares[: self.ranks.rank]))
        mine = advantages[first : first + len(kept)]
        return [replace(one, group=replace(one.group, advantages=a)) for one, a in zip(kept, mine, strict=True)]

    def _metrics(self, seen: Sequence[Scored]) -> dict[str, float]:
        names = self.rewards.names
        mine = [
            (one.total.tolist(), [one.rewards[name].tolist() for name in names], list(one.group.finished),
             [tokens.numel() for tokens in one.group.completions])
            for one in seen
        ]  # fmt: skip
        every = [one for share in self.ranks.gather(mine) for one in share]
        totals = [torch.tensor(total, dtype=torch.float64) for total, *_ in every]
        flat = torch.cat(totals)
        found = {"reward": flat.mean().item()}
        for place, name in enumerate(names):
            values = torch.tensor([x for _, rewards, *_ in every for x in rewards[place]], dtype=torch.float64)
            found[f"reward/{name}"] = values.nanmean().nan_to_num().item()
        found["reward_std"] = sum(one.std().item() if len(one) > 1 else 0.0 for one in totals) / len(totals)
        found["groups_without_spread"] = sum(bool(one.max() == one.min()) for one in totals) / len(totals)
        finished = [flag for *_, flags, _ in every for flag in flags]
        found["truncated"] = 1.0 - sum(finished) / len(finished)
        lengths = [length for *_, lengths in every for length in lengths]
        found["length"] = sum(lengths) / len(lengths)
        return found


def sampling_of(settings: Settings) -> SamplingParams:
    rollout = settings.rollout
    return SamplingParams(
        temperature=settings.loss.temperature, top_k=rollout.top_k, top_p=rollout.top_p, min_p=rollout.min_p,
        repetition_penalty=rollout.repetition_penalty, max_tokens=settings.max_tokens,
        stop_strings=tuple(rollout.stop),
    )  # fmt: skip


def hash_of(seed: int, number: int) -> int:
    """A seed for each drawn question, the same on any number of ranks."""
    return (seed * 0x9E3779B97F4A7C15 + number) & (1 << 63) - 1
