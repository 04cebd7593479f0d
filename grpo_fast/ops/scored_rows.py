"""Which rows of a batch are scored, and what the loss's normaliser multiplies each with.

Rows known before the first GEMM to have zero gradient are left out; the normaliser still counts them. Selection runs
on the host: CPU tensors cost no sync, tensors on the device cost one copy back. Without `compact` nothing is left out
and nothing is copied back: rows that do not count carry the target -1.
Suffixes: M rows of the input, N scored rows, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_fast.config import WINDOW_NORMALISED, LossOptions


@dataclass(frozen=True, slots=True)
class ScoredRows:
    count: int  # N
    index: Tensor | None  # [N] int64 rows of the input, on its device; None: all of them, in order
    starts: list[int] | None  # [S + 1] where each sequence starts among the scored rows, where the host knows
    lengths: Tensor  # [S] int64 rows of each sequence among the scored, on the device
    tokens: Tensor  # [S] fp32 tokens that count in each sequence, left-out rows among them
    advantages: Tensor  # [N] fp32
    weights: Tensor  # [N] fp32
    mask: Tensor | None  # [N] bool: which of the rows count, where index is None

    def pick(self, x: Tensor | None) -> Tensor | None:
        """The scored rows of a per-row tensor [M] where one is given; rows that do not count give 0."""
        return None if x is None else self._select(x, 0.0)

    def pick_targets(self, targets: Tensor) -> Tensor:
        """The same for targets; rows that do not count give -1."""
        return self._select(targets, -1)

    def _select(self, x: Tensor, fill: float) -> Tensor:
        if self.index is not None:
            return x.index_select(0, self.index)
        return x if self.mask is None else torch.where(self.mask, x, fill)


def select_rows(
    options: LossOptions,
    rows: int,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    advantages: Tensor,
    truncated: Tensor | None,
    num_items: Tensor | None,
    device: torch.device,
    coupled: bool,
    compact: bool,
) -> ScoredRows:
    given = [x for x in (cu_seqlens, mask, advantages, truncated) if x is not None]
    on_host = all(x.device.type == "cpu" for x in given)
    if compact and not on_host:
        (cu_seqlens, advantages), (mask, truncated) = _to_host((cu_seqlens, advantages), (mask, truncated))
        on_host = True
    place = torch.device("cpu") if on_host else device
    cu, adv = cu_seqlens.to(place), advantages.detach().to(place, torch.float32)
    lengths = cu.diff()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=place), lengths, output_size=rows)
    if len(adv) == len(lengths):
        adv = adv[sequence]
    live = torch.ones(rows, dtype=torch.bool, device=place) if mask is None else mask.to(place) != 0
    if truncated is not None:
        live = live & (truncated.to(place)[sequence] == 0)
    if on_host:
        _refuse_nan(adv, live, advantages, sequence)
    adv = torch.where(live, adv, 0.0)
    tokens = _count(live, lengths)
    weights = torch.where(live, _weights(options, tokens)[sequence], 0.0)

    index, kept, starts = None, lengths, None
    if compact:
        keep = live & _may_have_gradient(options, adv, sequence, len(lengths), coupled)
        index = keep.nonzero()[:, 0]
        kept = _count(keep, lengths).long()
        starts = [0, *kept.cumsum(0).tolist()]
        if len(index) == rows:
            index = None
        else:
            adv, weights = adv[index], weights[index]
        live_rows = None
    else:
        live_rows = live
        starts = cu.tolist() if on_host else None

    def move(x: Tensor) -> Tensor:
        return x.to(device, non_blocking=True)

    weights = move(weights)
    if num_items is not None and options.loss_type in WINDOW_NORMALISED:
        weights = weights / num_items.to(device, torch.float32, non_blocking=True).clamp(min=1.0)
    elif options.loss_type in WINDOW_NORMALISED or options.loss_type == "bnpo":
        total = move(tokens.sum().clamp(min=1.0))
        weights = weights / (total * options.gradient_accumulation_steps)
    return ScoredRows(
        count=rows if index is None else len(index),
        index=None if index is None else move(index),
        starts=starts,
        lengths=move(kept),
        tokens=move(tokens),
        advantages=move(adv),
        weights=weights,
        mask=None if live_rows is None else move(live_rows),
    )


def _weights(o: LossOptions, tokens: Tensor) -> Tensor:
    """[S] factor of every row of a sequence, but for what depends on the whole window's count."""
    sequences = max(1, len(tokens))
    if o.loss_type in ("grpo", "sapo"):
        return 1.0 / (tokens.clamp(min=1.0) * sequences * o.gradient_accumulation_steps)
    if o.loss_type == "luspo":
        return torch.full_like(tokens, 1.0 / (sequences * o.gradient_accumulation_steps))
    if o.loss_type == "dr_grpo":
        assert o.max_completion_length is not None
        return torch.full_like(tokens, 1.0 / (sequences * o.max_completion_length * o.gradient_accumulation_steps))
    return torch.ones_like(tokens)


def _may_have_gradient(o: LossOptions, adv: Tensor, sequence: Tensor, sequences: int, coupled: bool) -> Tensor:
    """False for rows whose gradient is known to be zero from their advantages alone."""
    if o.beta != 0.0 or o.entropy_bonus or o.top_entropy_quantile < 1.0:
        return torch.ones_like(adv, dtype=torch.bool)
    moved = adv != 0
    if not coupled:
        return moved
    some = torch.zeros(sequences, dtype=torch.int32, device=adv.device).index_add_(0, sequence, moved.int())
    return (some > 0)[sequence]


def _count(live: Tensor, lengths: Tensor) -> Tensor:
    """[S] fp32 number of set rows of each sequence (exact: counts stay below 2**24)."""
    return torch.segment_reduce(live.float(), "sum", lengths=lengths, unsafe=True)


def _to_host(
    needed: tuple[Tensor, ...], optional: tuple[Tensor | None, ...]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """One copy for all that lies on the device; fp64 holds every value exactly."""
    away = [x for x in (*needed, *optional) if x is not None and x.device.type != "cpu"]
    flat = torch.cat([x.detach().double().flatten() for x in away]).cpu().split([x.numel() for x in away])
    back = iter([part.to(x.dtype).view(x.shape) for part, x in zip(flat, away, strict=True)])
    here = [x if x.device.type == "cpu" else next(back) for x in needed]
    return here, [x if x is None or x.device.type == "cpu" else next(back) for x in optional]


def _refuse_nan(adv: Tensor, live: Tensor, given: Tensor, sequence: Tensor) -> None:
    bad = (~torch.isfinite(adv) & live).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        at = row if len(given) == len(adv) else int(sequence[row])
        raise ValueError(f"advantages[{at}] is {given[at].item()}: every scored row needs a finite advantage")
