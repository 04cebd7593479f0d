"""GRPO and its kin, fused with the language-model head; every option that TRL's GRPOConfig gives its loss."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from grpo_fast.config import loss_options
from grpo_fast.ops import fused_loss  # noqa: F401  registers the op
from grpo_fast.ops.inputs import (
    Lora,
    check_head,
    compute_dtype,
    is_floating,
    refuse_outside,
    same_device,
    shape,
    wanted_grads,
)
from grpo_fast.ops.layout import chunk_budget
from grpo_fast.types import LossOutput, Metrics


class GRPOLoss:
    """loss_fn(hidden, weight, targets, advantages=…) -> LossOutput; the settings are those of `LossOptions`.

    Padded: hidden [B, T, H], targets [B, T], advantages [B] or [B, T], mask [B, T].
    Packed: hidden [N, H], targets [N], advantages [S] or [N], cu_seqlens [S + 1], mask [N] where there are holes.
    hidden[.., t] predicts targets[.., t]: nothing is shifted here. Where S = N, advantages are one per sequence.
    """

    def __init__(
        self, *, chunk_bytes: int | None = None, compact: bool = True, backend: str = "auto", **options: Any
    ) -> None:
        """`chunk_bytes` bounds the memory beyond gradients; `compact=False` scores rows of zero gradient too."""
        self.options = o = loss_options(**options)
        self.chunk_bytes, self.compact, self.backend = chunk_bytes, compact, backend
        self.entropy_coef = o.entropy_coef
        self._counts_sequences = o.loss_type == "vespo" or o.importance_sampling_level == "sequence"
        self._options_json = o.to_json()
        self.last_entropy = float("inf")  # adaptive: no bonus before the first measurement
        self._window: Metrics | None = None

    def __repr__(self) -> str:
        return f"GRPOLoss({self.options})"

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,  # [V, H]
        targets: Tensor,
        *,
        advantages: Tensor,
        mask: Tensor | None = None,  # bool, int or float 0/1; may have holes
        cu_seqlens: Tensor | None = None,
        old_logps: Tensor | None = None,  # shaped like targets; None: on policy
        ref_logps: Tensor | None = None,
        sampler_logps: Tensor | None = None,  # turns the sampler correction on; NaN where unknown
        num_items_in_batch: Tensor | float | None = None,  # dapo, cispo, vespo: tokens of the accumulation window
        entropy_scale: float = 1.0,  # of the bonus: this call's share of the accumulation window's tokens
        truncated: Tensor | None = None,  # [B] or [S] bool, for mask_truncated_completions
        bias: Tensor | None = None,  # [V]
        lora: Lora | None = None,
        compact: bool | None = None,
    ) -> LossOutput:
        o = self.options
        rows, y, lora_a, lora_b, lora_scale = check_head(hidden, weight, targets, bias, lora, o.temperature, o.softcap)
        compact = self.compact if compact is None else compact
        cu = _boundaries(targets, cu_seqlens, torch.device("cpu") if compact else hidden.device)
        sequences = len(cu) - 1
        for name, x in (("old_logps", old_logps), ("ref_logps", ref_logps), ("sampler_logps", sampler_logps)):
            if x is not None:
                is_floating(name, x)
                same_device(name, x, hidden)
                _like_targets(name, x, targets)
        if mask is not None:
            _check_mask(mask, targets)
        refuse_outside(targets, weight.shape[0], low=0, mask=mask)
        _check_advantages(advantages, targets, sequences)
        self._check_needs(ref_logps, sampler_logps, truncated, sequences)
        wants = wanted_grads(hidden, weight, bias, lora_a, lora_b)

        def flat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().reshape(-1)

        items = _items(num_items_in_batch)
        loss, logps, entropy, scored, metrics, *_ = torch.ops.grpo_fast.fused_loss(
            rows, weight, bias, lora_a, lora_b, y, cu, flat(advantages), flat(mask), flat(old_logps), flat(ref_logps),
            flat(sampler_logps), truncated if o.mask_truncated_completions else None,
            items, self._options_json,
            self._applied_entropy_coef() * entropy_scale, lora_scale, wants, compact,
            compute_dtype(hidden), chunk_budget(self.chunk_bytes, hidden.device),
            self.backend,
        )  # fmt: skip
        found = Metrics(metrics.detach(), self._counts_sequences and advantages.shape == (sequences,))
        if o.use_adaptive_entropy and any(wants):
            self._window = found if self._window is None else self._window.merge(found)
        return LossOutput(
            loss=loss, logps=logps.detach().view(targets.shape), entropy=entropy.detach().view(targets.shape),
            scored=scored.view(targets.shape), metrics=found,
        )  # fmt: skip

    def _applied_entropy_coef(self) -> float:
        if self.options.use_adaptive_entropy and self.last_entropy > self.options.entropy_target:
            return 0.0
        return self.entropy_coef

    def update_entropy_coef(self) -> float:
        """Adaptive entropy: call once after each optimizer step. Measures the window over all ranks, moves the
        coefficient by entropy_coef_delta towards entropy_target, and returns it."""
        o = self.options
        if not o.use_adaptive_entropy or self._window is None:
            return self.entropy_coef
        sums = self._window.active_entropy()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        total, count = sums.tolist()
        self._window, self.last_entropy = None, total / max(count, 1.0)
        if self.last_entropy <= o.entropy_target:
            self.entropy_coef = min(self.entropy_coef + o.entropy_coef_delta, o.entropy_coef_max)
        else:
            self.entropy_coef = max(self.entropy_coef - o.entropy_coef_delta, o.entropy_coef_min)
        return self.entropy_coef

    def _check_needs(
        self, ref_logps: Tensor | None, sampler_logps: Tensor | None, truncated: Tensor | None, sequences: int
    ) -> None:
        o = self.options
        if o.beta != 0.0 and ref_logps is None:
            raise ValueError(f"beta is {o.beta}: ref_logps are needed (log-probs of the reference policy)")
        if o.mask_truncated_completions and getattr(truncated, "shape", None) != (sequences,):
            got = "none" if truncated is None else shape(truncated)
            raise ValueError(f"mask_truncated_completions needs truncated [{sequences}] (bool), got {got}")
        by_sequence = o.importance_sampling_correction and o.importance_sampling_mode.startswith("sequence")
        if o.loss_type == "vespo" and sampler_logps is not None and by_sequence:
            raise ValueError(
                "vespo takes the sampler correction per token: set importance_sampling_mode to 'token_truncate' or "
                f"'token_mask' (it is {o.importance_sampling_mode!r})"
            )


def _boundaries(targets: Tensor, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """[S + 1] where each sequence starts; a padded batch's rows are one sequence each, counted on `device`."""
    if cu_seqlens is None:
        if targets.dim() != 2:
            raise ValueError(
                f"packed input needs cu_seqlens [S + 1]; without it targets must be [B, T], got {shape(targets)}"
            )
        b, t = targets.shape
        return torch.arange(b + 1, device=device) * t
    if targets.dim() != 1:
        raise ValueError(f"with cu_seqlens, targets must be [N] and hidden [N, H], got targets {shape(targets)}")
    integers = isinstance(cu_seqlens, Tensor) and cu_seqlens.dtype in (torch.int32, torch.int64)
    if not integers or cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        raise ValueError(f"cu_seqlens must be a tensor [S + 1] of int32 or int64, got {shape(cu_seqlens)}")
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != len(targets) or any(b < a for a, b in itertools.pairwise(ends)):
            raise ValueError(f"cu_seqlens must rise from 0 to the {len(targets)} rows, got {ends[:4]} … {ends[-1]}")
    return cu_seqlens


def _check_advantages(advantages: Tensor, targets: Tensor, sequences: int) -> None:
    if not isinstance(advantages, Tensor) or not advantages.is_floating_point():
        raise TypeError(f"advantages must be a floating tensor, got {shape(advantages)}")
    if advantages.shape not in ((sequences,), targets.shape):
        raise ValueError(
            f"advantages must be [{sequences}] (one per sequence) or {list(targets.shape)} (one per token), "
            f"got {shape(advantages)}"
        )


def _check_mask(mask: Tensor, targets: Tensor) -> None:
    _like_targets("mask", mask, targets)
    if mask.device.type == "cpu" and mask.dtype != torch.bool and not torch.compiler.is_compiling():
        odd = ((mask != 0) & (mask != 1)).nonzero()
        if len(odd):
            at = tuple(odd[0].tolist())
            raise ValueError(f"mask must be 0 or 1, got {mask[at].item()} at {list(at)}")


def _items(given: Tensor | float | None) -> Tensor | None:
    if given is None:
        return None
    if not isinstance(given, Tensor) and not given >= 0:
        raise ValueError(f"num_items_in_batch must not be negative, got {given}")
    if isinstance(given, Tensor) and given.numel() != 1:
        raise ValueError(f"num_items_in_batch must be one number, got {shape(given)}: sum it over the window")
    return torch.as_tensor(given, dtype=torch.float32).detach()


def _like_targets(name: str, x: Tensor, targets: Tensor) -> None:
    if not isinstance(x, Tensor) or x.shape != targets.shape:
        raise ValueError(f"{name} must be shaped like targets {list(targets.shape)}, got {shape(x)}")
