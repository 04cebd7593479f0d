"""One step's groups to an optimizer update: old and reference log-probs, micro-batches, gradients, clipping.

Every normaliser counts the tokens and completions of all ranks, so a step's gradient does not depend on how its groups
are spread over ranks and micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grpo_fast.config import WINDOW_NORMALISED, LossOptions
from grpo_fast.errors import RunFailed
from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy import GRPOPolicy, Packer, split_rows
from grpo_fast.policy.packing import counted_tokens
from grpo_fast.train.optim import clip
from grpo_fast.train.ranks import Ranks
from grpo_fast.types import MINIMA, SUMS, Group, LossOutput, Metrics, PackedBatch

Logps = dict[tuple[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class Updated:
    """What one step did, over all ranks."""

    metrics: dict[str, float]
    micro_batches: int
    lm_tokens: int  # on this rank


@dataclass(frozen=True, slots=True)
class Shares:
    """This rank's part of the step's normaliser: its own count times ranks over everybody's."""

    sequences: float
    tokens: float
    num_items: float  # the window's tokens over ranks

    def of(self, options: LossOptions) -> float:
        if options.loss_type in WINDOW_NORMALISED:
            return 1.0
        return self.tokens if options.loss_type == "bnpo" else self.sequences


class Updater:
    """`wrapped` is what is called to train: the policy itself, or it in DistributedDataParallel."""

    def __init__(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        *,
        token_budget: int,
        max_grad_norm: float,
        reference: GRPOPolicy | None = None,  # None: the policy without its adapter
        watch: Callable[[int, int], None] | None = None,  # micro-batches done, of how many
    ) -> None:
        self.wrapped = wrapped
        self.policy: Any = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
        self.optimizer, self.ranks, self.reference, self.watch = optimizer, ranks, reference, watch
        self.token_budget, self.max_grad_norm = token_budget, max_grad_norm

    @property
    def loss(self) -> GRPOLoss:
        return self.policy.loss

    def __call__(
        self, groups: Sequence[Group], *, spare: Group | None = None, passes: int = 1, minibatches: int = 1
    ) -> Updated:
        """`passes` over the groups, each in `minibatches` optimizer updates. Ranks may have unequally many groups; one
        without any takes part with its `spare`, which counts for nothing."""
        if self.loss.options.beta != 0.0:
            groups = self._with_reference(groups, spare)
        if minibatches > 1:  # no update without a group, where filtering left fewer than there are updates
            minibatches = max(1, min(minibatches, max(self.ranks.gather(len(groups)))))
            groups = _with(groups, "old_logps", self._logps(groups, spare, self.policy, False))
        parts = [
            groups[i * len(groups) // minibatches : (i + 1) * len(groups) // minibatches] for i in range(minibatches)
        ]
        done: list[Updated] = []
        for number in range(passes):
            for place, part in enumerate(parts):
                seen: Logps | None = {} if passes > 1 and minibatches == 1 and number == 0 else None
                done.append(self._update(part, spare, seen))
                if seen is not None:  # the first pass is on policy: its own log-probs are the old ones of the next
                    parts[place] = _with(part, "old_logps", seen)
        return _together(done)

    def _update(self, groups: Sequence[Group], spare: Group | None, seen: Logps | None) -> Updated:
        options = self.loss.options
        shares = self._shares(groups, options)
        step = self._packed(groups, spare, self.policy, shares.num_items)
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.train()
        metrics: list[Metrics] = []
        sums = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)  # loss, log-probs, how many
        for number, batch in enumerate(step, 1):
            counted = bool(groups) and batch.scale != 0
            if counted:
                own = shares.of(options)
                batch = replace(batch, scale=batch.scale * own, entropy_scale=batch.entropy_scale * shares.tokens / own)
            else:
                batch = replace(batch, scale=0.0)
            with self._accumulating(last=number == len(step)):
                out: LossOutput = self.wrapped(batch.to(self.ranks.device))
                out.loss.backward()
            if counted:
                sums += torch.stack([out.loss.detach(), out.logps.sum(), out.scored.sum()])
            metrics.append(out.metrics if counted else _nothing(out.metrics))
            if seen is not None and counted:
                seen |= split_rows(batch, out.logps)
            if self.watch is not None:
                self.watch(number, len(step))
        norm = clip([p for p in self.policy.parameters() if p.requires_grad], self.max_grad_norm)
        found = self._reduced(metrics[0].merge(*metrics[1:]), sums)
        if not (math.isfinite(norm) and math.isfinite(found["loss"])):
            raise RunFailed(
                f"the loss is {found['loss']} and the gradient's norm {norm}: the weights were left as they are. "
                "Lower learning_rate, or look at the last lines of samples.jsonl for what it was trained on"
            )
        self.optimizer.step()
        found |= {"grad_norm": norm, "entropy_coef": self.loss.update_entropy_coef()}
        return Updated(found, len(step), sum(batch.lm_tokens for batch in step))

    def _packed(
        self, groups: Sequence[Group], spare: Group | None, policy: GRPOPolicy, num_items: float | None = None
    ) -> tuple[PackedBatch, ...]:
        """As many micro-batches as the rank with the most has."""
        if not groups and spare is None:
            raise ValueError("no groups and no spare one to join the other ranks with")
        live = groups or [replace(spare, advantages=torch.zeros(len(spare.completions)))] if spare else groups
        packer = Packer(policy.prompt_spec, self.token_budget, self.loss.options)
        batches = packer.pack(live, num_items_in_batch=num_items).batches
        most = max(self.ranks.gather(len(batches)))
        return (
            batches if most == len(batches) else packer.pack(live, at_least=most, num_items_in_batch=num_items).batches
        )

    def _shares(self, groups: Sequence[Group], options: LossOptions) -> Shares:
        sequences = sum(len(group.completions) for group in groups)
        tokens = sum(counted_tokens(group, i, options) for group in groups for i in range(len(group.completions)))
        every = self.ranks.stack(torch.tensor([sequences, tokens], dtype=torch.float64, device=self.ranks.device))
        all_sequences, all_tokens = every.sum(0).tolist()
        world = self.ranks.world
        return Shares(
            sequences * world / max(all_sequences, 1.0), tokens * world / max(all_tokens, 1.0), all_tokens / world
        )

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients meet the other ranks' once, after the last micro-batch."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return nullcontext()

    def _reduced(self, metrics: Metrics, sums: Tensor) -> dict[str, float]:
        every = [Metrics(values, metrics.by_sequence) for values in self.ranks.stack(metrics.values)]
        loss, logps, scored = self.ranks.stack(sums).sum(0).tolist()
        means = {"loss": loss / self.ranks.world, "logp": logps / max(scored, 1.0)}
        return every[0].merge(*every[1:]).as_dict() | means

    def _with_reference(self, groups: Sequence[Group], spare: Group | None) -> list[Group]:
        reference = self.policy if self.reference is None else self.reference
        return _with(groups, "ref_logps", self._logps(groups, spare, reference, self.reference is None))

    def _logps(self, groups: Sequence[Group], spare: Group | None, policy: GRPOPolicy, adapter_off: bool) -> Logps:
        found: Logps = {}
        for batch in self._packed(groups, spare, policy):
            logps = policy.logps(batch.to(self.ranks.device), reference=adapter_off)
            if groups:
                found |= split_rows(batch, logps)
        return found


def _nothing(metrics: Metrics) -> Metrics:
    """What leaves sums, minima and maxima of others as they are."""
    values = torch.zeros_like(metrics.values)
    values[len(SUMS) :] = math.inf
    values[len(SUMS) + len(MINIMA) :] = -math.inf
    return Metrics(values, metrics.by_sequence)


def _with(groups: Sequence[Group], name: str, logps: Logps) -> list[Group]:
    """Completions that were not in the model have no gradient, whatever their log-probs: zeros stand for them."""
    return [
        replace(
            group,
            **{
                name: tuple(
                    logps.get((number, i), torch.zeros(completion.shape))
                    for i, completion in enumerate(group.completions)
                )
            },
        )
        for number, group in enumerate(groups)
    ]


def _together(done: Sequence[Updated]) -> Updated:
    """Means over the updates of one rollout."""
    names = done[0].metrics
    return Updated(
        {name: sum(one.metrics[name] for one in done) / len(done) for name in names},
        sum(one.micro_batches for one in done),
        sum(one.lm_tokens for one in done),
    )
