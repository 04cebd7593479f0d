"""The installed TRL's own `GRPOTrainer._compute_loss`, driven without a model or a trainer loop.

The trainer object is real but never initialised: only the attributes that the loss reads are set, the way
`GRPOTrainer.__init__` derives them from a real `GRPOConfig`. The one replaced part is the model's forward: per-token
log-probabilities and entropies come from (hidden, weight) in plain torch, so that TRL's loss has gradients for both.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from parity.batch import Batch, token_logps
from parity.table import Case
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer


@dataclass(frozen=True, slots=True)
class Result:
    loss: Tensor
    grad_hidden: Tensor  # [B, T, H]
    grad_weight: Tensor  # [V, H]
    metrics: dict[str, float]


def make_config(**options: Any) -> GRPOConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return GRPOConfig(output_dir=tempfile.gettempdir(), use_cpu=True, report_to=[], bf16=False, **options)


def make_trainer(config: GRPOConfig, *, accumulation: int = 1, training: bool = True) -> GRPOTrainer:
    trainer = object.__new__(GRPOTrainer)
    trainer.args = config
    trainer.accelerator = Accelerator(cpu=True)  # after the config, whose construction resets accelerate's state
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.model = torch.nn.Identity().train(training)
    trainer.current_gradient_accumulation_steps = accumulation
    for name in (
        "beta", "loss_type", "importance_sampling_level", "max_completion_length", "off_policy_mask_threshold",
        "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "use_vllm",
        "vllm_importance_sampling_correction",
    ):  # fmt: skip
        setattr(trainer, name, getattr(config, name))
    trainer.epsilon_low = config.epsilon
    trainer.epsilon_high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    trainer.aux_loss_enabled = False
    trainer.router_aux_loss_coef = 0.0
    trainer._entropy_bonus_enabled = config.entropy_coef != 0.0 or config.use_adaptive_entropy
    trainer._last_world_entropy = math.inf
    trainer._entropy_window_stats = None
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return trainer


def importance_sampling_ratio(config: GRPOConfig, batch: Batch, old_logps: Tensor) -> Tensor:
    """π_old / π_sampler per token or per sequence, truncated or masked; an unknown sampler log-prob counts as equal.

    TRL computes it while scoring; test_trainer.py holds this against the real one."""
    assert batch.sampler_logps is not None
    known = batch.scored.bool() & ~batch.sampler_logps.isnan()
    log_ratio = torch.where(known, old_logps - batch.sampler_logps, torch.zeros_like(old_logps))
    level, how = config.vllm_importance_sampling_mode.split("_")
    if level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True)
    ratio = log_ratio.exp()
    low = config.vllm_importance_sampling_clip_min
    high = config.vllm_importance_sampling_clip_max
    if how == "truncate":
        return ratio.clamp(low, high)
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        outside |= ratio < low
    if high is not None:
        outside |= ratio > high
    return torch.where(outside, torch.zeros_like(ratio), ratio)


def loss_inputs(config: GRPOConfig, batch: Batch, logps: Tensor, num_items_in_batch: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "prompt_ids": torch.zeros(len(batch.targets), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(batch.targets), 1, dtype=torch.long),
        "completion_ids": batch.targets,
        # TRL zeroes truncated completions in both masks while scoring
        "completion_mask": batch.scored if batch.tool_mask is None else batch.completion_mask,
        "advantages": batch.advantages,
        "num_items_in_batch": torch.tensor(num_items_in_batch),
    }
    old_logps = logps.detach() if batch.old_logps is None else batch.old_logps
    optional = {
        "tool_mask": None if batch.tool_mask is None else batch.scored,
        "old_per_token_logps": batch.old_logps,
        "ref_per_token_logps": batch.ref_logps,
        "sampling_per_token_logps": batch.sampler_logps,
    }
    inputs |= {name: value for name, value in optional.items() if value is not None}
    if config.use_vllm and config.vllm_importance_sampling_correction:
        inputs["importance_sampling_ratio"] = importance_sampling_ratio(config, batch, old_logps)
    return inputs


def run_trainer(trainer: GRPOTrainer, batch: Batch, num_items_in_batch: int) -> Result:
    hidden = batch.hidden.clone().requires_grad_()
    weight = batch.weight.clone().requires_grad_()
    logps, entropies = token_logps(hidden, weight, batch.targets, trainer.args.temperature)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logps, entropies, None)
    mode = "train" if trainer.model.training else "eval"
    trainer._metrics[mode].clear()
    inputs = loss_inputs(trainer.args, batch, logps, num_items_in_batch)
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    metrics = {name: values[-1] for name, values in trainer._metrics[mode].items()}
    return Result(loss.detach(), grad_hidden, grad_weight, metrics)


def trl_result(case: Case, batch: Batch) -> Result:
    options = {
        **case.options,
        "gradient_accumulation_steps": case.row.accumulation,
        "steps_per_generation": case.row.steps_per_generation,
    }
    trainer = make_trainer(make_config(**options), accumulation=case.row.accumulation, training=case.row.training)
    return run_trainer(trainer, batch, trl_num_items(case, batch))


def trl_num_items(case: Case, batch: Batch) -> int:
    """Scored tokens of the whole generation batch: this micro-batch and others of other lengths."""
    others = case.row.steps_per_generation - 1
    return int(batch.scored.sum()) + 17 * others
