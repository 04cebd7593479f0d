"""The same case through grpo_fast.GRPOLoss, padded or packed."""

from __future__ import annotations

from typing import Any

import torch
from parity.batch import Batch, H, V
from parity.table import Case
from parity.trl_side import Result, trl_num_items
from torch import Tensor

from grpo_fast import GRPOLoss


def our_options(case: Case) -> dict[str, Any]:
    """TRL's options under our names: the sampler's lose `vllm_`, and `use_vllm` is the presence of sampler_logps."""
    options = {name.removeprefix("vllm_"): value for name, value in case.options.items() if name != "use_vllm"}
    # TRL accumulates gradients in training only
    return {**options, "gradient_accumulation_steps": case.row.accumulation if case.row.training else 1}


def our_num_items(case: Case, batch: Batch) -> float:
    """TRL's count spans the generation batch; ours one accumulation window (of one rank, here)."""
    window = case.row.accumulation / case.row.steps_per_generation if case.row.training else 1.0
    return trl_num_items(case, batch) * window


def run_loss(
    loss_fn: GRPOLoss, batch: Batch, layout: str = "padded", num_items_in_batch: float | None = None, **call: Any
) -> Result:
    hidden = batch.hidden.clone().requires_grad_()
    weight = batch.weight.clone().requires_grad_()

    def lay(x: Tensor | None) -> Tensor | None:
        return x if layout == "padded" or x is None else batch.pack(x)

    advantages = batch.advantages if batch.advantages.dim() == 1 else lay(batch.advantages)
    out = loss_fn(
        lay(hidden),
        weight,
        lay(batch.targets),
        advantages=advantages,
        mask=lay(batch.mask),
        cu_seqlens=None if layout == "padded" else batch.cu_seqlens,
        old_logps=lay(batch.old_logps),
        ref_logps=lay(batch.ref_logps),
        sampler_logps=lay(batch.sampler_logps),
        truncated=batch.truncated,
        num_items_in_batch=num_items_in_batch,
        **call,
    )
    grad_hidden, grad_weight = torch.autograd.grad(out.loss, (hidden, weight))
    return Result(out.loss.detach(), grad_hidden, grad_weight, trl_names(out.metrics.as_dict()))


def trl_names(metrics: dict[str, float]) -> dict[str, float]:
    """Our metrics under the names of TRL's log."""
    return {
        "kl": metrics["kl"],
        "entropy": metrics["entropy"],
        "clip_ratio/low_mean": metrics["clip_low"],
        "clip_ratio/high_mean": metrics["clip_high"],
        "clip_ratio/region_mean": metrics["clip_region"],
        "clip_ratio/low_min": metrics["clip_low_min"],
        "clip_ratio/high_max": metrics["clip_high_max"],
        "cispo_clip_ratio": metrics["clip_high"],
        "vespo/phi_seq_mean": metrics["phi"],
    }


def our_result(case: Case, batch: Batch, layout: str = "padded", chunk_rows: int | None = None, **call: Any) -> Result:
    chunk_bytes = None if chunk_rows is None else chunk_rows * (V + 3 * H) * 4
    loss_fn = GRPOLoss(**our_options(case), chunk_bytes=chunk_bytes)
    return run_loss(loss_fn, batch, layout, our_num_items(case, batch), **call)
