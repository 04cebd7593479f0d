"""Whole groups into micro-batches by a token budget, and a micro-batch into one row of tokens.

Completions that the loss cannot give a gradient (zero advantage, or cut at the limit and masked for it) leave the whole
step: tower, language model and head. They stay in the loss's bookkeeping, so every normaliser still counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_fast.config import WINDOW_NORMALISED, LossOptions
from grpo_fast.policy import plan
from grpo_fast.policy.checks import PromptSpec, check_group, placeholder_rows
from grpo_fast.types import Group, PackedBatch, VisionFeatures, VisionInput


@dataclass(frozen=True, slots=True)
class PackedStep:
    batches: tuple[PackedBatch, ...]
    fill: float  # packed tokens over budget × micro-batches
    left_out_groups: int  # groups without any completion in the model
    left_out_completions: int
    over_budget: int  # groups larger than the budget, each alone in its micro-batch


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    number: int  # the group's place among those given
    group: Group
    kept: tuple[int, ...]  # completions that go through the model
    tokens: int


class Packer:
    """Packs groups for one model. `options` of the loss say what may be left out and how micro-batches are weighed."""

    def __init__(self, spec: PromptSpec, token_budget: int, options: LossOptions | None = None) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {token_budget}")
        self.spec, self.token_budget, self.options = spec, token_budget, options

    def pack(
        self, groups: Sequence[Group], *, at_least: int = 1, num_items_in_batch: float | None = None
    ) -> PackedStep:
        """`at_least`: the number of micro-batches that other ranks have; groups are spread, then one is repeated with
        weight 0, so that every rank runs equally many forwards."""
        if not groups:
            raise ValueError("nothing to pack: no groups")
        for group in groups:
            check_group(group, self.spec)
        kept = [_keep(number, group, self.options) for number, group in enumerate(groups)]
        live = [item for item in kept if item.kept]
        if not live:  # something has to go through the model, for gradients of zero instead of none
            item = min(kept, key=lambda item: item.group.prompt.input_ids.numel())
            live = [_with(item, (0,))]
        bins = first_fit_decreasing([item.tokens for item in live], self.token_budget)
        bins = spread(bins, [item.tokens for item in live], at_least)
        fillers = at_least - len(bins)

        absent = [item for item in kept if not item.kept and item.number not in {one.number for one in live}]
        whole = Totals.of(groups, self.options, num_items_in_batch)
        batches = []
        for place, numbers in enumerate(bins):
            here = [live[i] for i in numbers] + (absent if place == 0 else [])
            batches.append(_join(here, whole, self.options, self.spec, weight=1.0))
        smallest = min(live, key=lambda item: item.tokens)
        batches += [_join([smallest], whole, self.options, self.spec, weight=0.0) for _ in range(fillers)]
        return PackedStep(
            batches=tuple(batches),
            fill=sum(b.lm_tokens for b in batches) / (self.token_budget * len(batches)),
            left_out_groups=len(absent),
            left_out_completions=sum(len(i.group.completions) for i in kept) - sum(len(i.kept) for i in live),
            over_budget=sum(item.tokens > self.token_budget for item in live),
        )


def may_leave_out(options: LossOptions | None) -> bool:
    """Whether a completion of zero advantage is sure to have zero gradient."""
    return (
        options is not None
        and options.beta == 0.0
        and not options.entropy_bonus
        and options.top_entropy_quantile == 1.0
    )


def counted_tokens(group: Group, completion: int, options: LossOptions | None) -> int:
    """What the normaliser counts of a completion: nothing of one cut at the limit, where such are masked."""
    masked = options is not None and options.mask_truncated_completions and group.finished
    return 0 if masked and not group.finished[completion] else group.completions[completion].numel()


def first_fit_decreasing(sizes: Sequence[int], budget: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = next((i for i, left in enumerate(room) if sizes[item] <= left), None)
        if place is None:
            bins.append([])
            room.append(budget)
            place = len(bins) - 1
        bins[place].append(item)
        room[place] -= sizes[item]
    return bins


def spread(bins: list[list[int]], sizes: Sequence[int], at_least: int) -> list[list[int]]:
    """Halve the fullest micro-batch until there are `at_least`, or every one holds a single group."""
    bins = [list(one) for one in bins]
    while len(bins) < at_least and any(len(one) > 1 for one in bins):
        fullest = max((one for one in bins if len(one) > 1), key=lambda one: sum(sizes[i] for i in one))
        bins.append(fullest[1::2])
        del fullest[1::2]
    return bins


@dataclass(frozen=True, slots=True)
class Totals:
    sequences: int
    tokens: int
    num_items_in_batch: float

    @classmethod
    def of(cls, groups: Sequence[Group], options: LossOptions | None, num_items: float | None) -> Totals:
        tokens = sum(counted_tokens(group, i, options) for group in groups for i in range(len(group.completions)))
        sequences = sum(len(group.completions) for group in groups)
        return cls(sequences, tokens, tokens if num_items is None else num_items)

    def share(self, options: LossOptions | None, sequences: int, tokens: int) -> float:
        """Of a micro-batch: the shares' weighted sum of the losses is the loss of the step as one batch."""
        if options is None or options.loss_type in WINDOW_NORMALISED:
            return 1.0
        return tokens / max(self.tokens, 1) if options.loss_type == "bnpo" else sequences / self.sequences


def split_rows(batch: PackedBatch, rows: Tensor) -> dict[tuple[int, int], Tensor]:
    """Per-target values (log-probs, …) by (group, completion), on the CPU; completions left out are absent."""
    in_model = batch.scored.index.shape[0]
    parts = rows.detach().cpu().split(batch.cu_seqlens.diff().tolist())
    ends = batch.cu_seqlens[1:].tolist()
    return {key: part for key, part, end in zip(batch.sequences, parts, ends, strict=True) if end <= in_model}


def _keep(number: int, group: Group, options: LossOptions | None) -> _Kept:
    every = tuple(range(len(group.completions)))
    kept = tuple(i for i in every if counted_tokens(group, i, options))
    if group.advantages is not None and may_leave_out(options):
        moved = group.advantages.tolist()
        kept = tuple(i for i in kept if moved[i] != 0)
    return _with(_Kept(number, group, every, 0), kept)


def _with(item: _Kept, kept: tuple[int, ...]) -> _Kept:
    prompt = item.group.prompt.input_ids.numel() if kept else 0
    return _Kept(item.number, item.group, kept, prompt + sum(item.group.completions[i].numel() for i in kept))


def _join(
    items: Sequence[_Kept], whole: Totals, options: LossOptions | None, spec: PromptSpec, weight: float
) -> PackedBatch:
    live = [item for item in items if item.kept]
    inside = [(item, i) for item in live for i in item.kept]
    outside = [(item, i) for item in items for i in range(len(item.group.completions)) if i not in item.kept]
    lay = plan.layout(
        np.array([item.group.prompt.input_ids.numel() for item in live]),
        np.array([item.group.completions[i].numel() for item, i in inside]),
        np.array([len(item.kept) for item in live]),
    )
    ids = [
        part for item in live for part in (item.group.prompt.input_ids, *(item.group.completions[i] for i in item.kept))
    ]
    sequences = inside + outside
    targets = [item.group.completions[i] for item, i in sequences]
    lengths = torch.tensor([target.numel() for target in targets])
    tokens = sum(counted_tokens(item.group, i, options) for item, i in sequences)
    share = whole.share(options, len(sequences), tokens)
    groups = [item.group for item in items]
    vision, features, rows, source = _vision(live, lay, spec)

    def each(pick: Callable[[Group], Any], what: str) -> list[Any] | None:
        values = [pick(group) for group in groups]
        missing = sum(value is None or len(value) == 0 for value in values)
        if missing == len(values):
            return None
        if missing:
            raise ValueError(f"{missing} of {len(values)} groups have no {what}; give it for all or for none")
        return [pick(item.group)[i] for item, i in sequences]

    def flat(pick: Callable[[Group], Any], what: str) -> Tensor | None:
        parts = each(pick, what)
        return None if parts is None else torch.cat(parts)

    advantages = each(lambda group: group.advantages, "advantages")
    finished = each(lambda group: group.finished, "finished flags")
    return PackedBatch(
        input_ids=torch.cat(ids),
        positions=plan.positions(lay, [item.group.prompt.positions for item in live]),
        plan=plan.attention_plan(lay),
        vision=vision,
        features=features,
        vision_rows=rows,
        vision_source=source,
        scored=plan.scored_rows(lay),
        targets=torch.cat(targets),
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        advantages=None if advantages is None else torch.stack([torch.as_tensor(a) for a in advantages]).float(),
        old_logps=flat(lambda group: group.old_logps, "old_logps"),
        ref_logps=flat(lambda group: group.ref_logps, "ref_logps"),
        sampler_logps=flat(lambda group: group.sampler_logps, "sampler_logps"),
        finished=None if finished is None else torch.tensor(finished, dtype=torch.bool),
        num_items_in_batch=whole.num_items_in_batch,
        scale=weight * share,
        entropy_scale=tokens / max(whole.tokens, 1) / share if share else 0.0,
        sequences=tuple((item.number, i) for item, i in sequences),
    )


def _vision(
    live: Sequence[_Kept], lay: plan.Layout, spec: PromptSpec
) -> tuple[tuple[VisionInput, ...], tuple[VisionFeatures | None, ...], Tensor, Tensor]:
    """Distinct images, and which packed row takes which of their features."""
    order: dict[tuple[str, tuple[int, int, int]], int] = {}  # one colour has the same patches under any grid
    inputs: list[VisionInput] = []
    features: list[VisionFeatures | None] = []
    rows, uses = [], []
    for item, segment in zip(live, lay.prompt_segments, strict=True):
        prompt = item.group.prompt
        for place, one in enumerate(prompt.vision):
            if (one.key, one.grid) not in order:
                order[one.key, one.grid] = len(inputs)
                inputs.append(one)
                features.append(prompt.features[place] if prompt.features is not None else None)
        for one, slots in zip(prompt.vision, placeholder_rows(prompt, spec), strict=True):
            rows.append(slots + int(lay.segment_starts[segment]))
            uses.append((order[one.key, one.grid], len(slots)))
    if not inputs:
        none = torch.zeros(0, dtype=torch.int64)
        return (), (), none, none
    tokens = np.zeros(len(inputs), dtype=np.int64)
    for number, count in uses:
        tokens[number] = count
    starts = np.cumsum(tokens) - tokens
    source = np.concatenate([starts[number] + np.arange(count) for number, count in uses])
    where = np.concatenate(rows)
    ascending = np.argsort(where, kind="stable")
    return (
        tuple(inputs),
        tuple(features),
        torch.from_numpy(where[ascending]),
        torch.from_numpy(source[ascending]),
    )
