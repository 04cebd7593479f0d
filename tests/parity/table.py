"""What is compared with TRL: one row per option, run for every loss type and importance-sampling level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
LEVELS = ("token", "sequence")
# layout and rows of a chunk: everything in one chunk, chunks that cut sequences, chunks that hold whole sequences
LAYOUTS = (("padded", None), ("packed", 16), ("packed", 32))
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    options: dict[str, Any] = field(default_factory=dict)  # of GRPOConfig, by TRL's names
    batch: dict[str, Any] = field(default_factory=dict)  # keywords of make_batch
    accumulation: int = 1
    steps_per_generation: int = 1
    training: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    row: Row
    loss_type: str
    level: str

    @property
    def id(self) -> str:
        return f"{self.row.name}-{self.loss_type}-{self.level}"

    @property
    def options(self) -> dict[str, Any]:
        return {"loss_type": self.loss_type, "importance_sampling_level": self.level, **self.row.options}


OFF = {"old": 0.2}  # about a third of the ratios leave the default clip range
KL = {"old": 0.2, "ref": 0.5}
SAMPLER = {"old": 0.2, "sampler": 0.6}


def sampler(mode: str, **options: Any) -> dict[str, Any]:
    return {"use_vllm": True, "vllm_importance_sampling_mode": mode, **options}


ROWS = (
    Row("on policy"),
    Row("off policy", batch=OFF),
    Row("far off policy", batch={"old": 8.0}),
    Row("outliers", batch={"old": 0.05, "outliers": True}),
    Row("epsilon", {"epsilon": 0.05}, OFF),
    Row("epsilon 0 on policy", {"epsilon": 0.0, "epsilon_high": 0.2}),
    Row("epsilon_high", {"epsilon": 0.1, "epsilon_high": 0.6}, OFF),
    Row("delta", {"delta": 1.5}, OFF),
    Row("delta inside the clip range", {"delta": 1.1, "epsilon_high": 0.4}, OFF),
    Row("delta below 1 on policy", {"delta": 0.9}),
    Row("beta", {"beta": 0.04}, KL),
    Row("beta on policy", {"beta": 0.3}, {"ref": 0.5}),
    Row("beta without bias correction", {"beta": 0.04, "use_bias_correction_kl": False}, KL),
    Row("beta with delta", {"beta": 0.3, "delta": 1.05}, KL),
    Row("sapo temperatures", {"sapo_temperature_pos": 0.6, "sapo_temperature_neg": 2.5}, OFF),
    Row(
        "vespo exponents",
        {"vespo_k_pos": 1.2, "vespo_lambda_pos": 1.9, "vespo_k_neg": 0.8, "vespo_lambda_neg": 1.1},
        {"old": 0.15},
    ),
    Row("max_completion_length", {"max_completion_length": 13}, OFF),
    Row("sampler token_truncate", sampler("token_truncate", vllm_importance_sampling_clip_max=1.5), SAMPLER),
    Row("sampler token_mask", sampler("token_mask", vllm_importance_sampling_clip_max=1.5), SAMPLER),
    Row("sampler sequence_truncate", sampler("sequence_truncate", vllm_importance_sampling_clip_max=1.5), SAMPLER),
    Row("sampler sequence_mask", sampler("sequence_mask"), SAMPLER),
    Row(
        "sampler token_truncate clip_min",
        sampler("token_truncate", vllm_importance_sampling_clip_min=0.8, vllm_importance_sampling_clip_max=None),
        SAMPLER,
    ),
    Row("sampler token_mask clip_min", sampler("token_mask", vllm_importance_sampling_clip_min=0.7), SAMPLER),
    Row("sampler sequence_mask clip_min", sampler("sequence_mask", vllm_importance_sampling_clip_min=0.5), SAMPLER),
    Row("sampler on policy", sampler("token_truncate", vllm_importance_sampling_clip_max=1.2), {"sampler": 0.4}),
    Row("sampler NaN token", sampler("token_truncate"), {**SAMPLER, "sampler_nan": True}),
    Row("sampler NaN sequence", sampler("sequence_truncate"), {**SAMPLER, "sampler_nan": True}),
    Row(
        "sampler correction off",
        {"use_vllm": True, "vllm_importance_sampling_correction": False, "off_policy_mask_threshold": 0.05},
        SAMPLER,
    ),
    Row("off_policy_mask", {"off_policy_mask_threshold": 0.05}, OFF),
    Row("off_policy_mask on policy", {"off_policy_mask_threshold": 0.05}),
    Row("off_policy_mask token advantages", {"off_policy_mask_threshold": 0.0}, {**OFF, "token_advantages": True}),
    Row("off_policy_mask sampler", sampler("token_truncate", off_policy_mask_threshold=0.1), SAMPLER),
    Row(
        "off_policy_mask sampler NaN",
        sampler("token_mask", off_policy_mask_threshold=0.02),
        {**SAMPLER, "sampler_nan": True},
    ),
    Row("off_policy_mask with beta", {"off_policy_mask_threshold": 0.05, "beta": 0.1}, KL),
    Row("top_entropy_quantile", {"top_entropy_quantile": 0.4}, OFF),
    Row("top_entropy_quantile on policy", {"top_entropy_quantile": 0.4}),
    Row("top_entropy_quantile on a value", {"top_entropy_quantile": 0.25}, {**OFF, "tool_holes": True}),
    Row("top_entropy_quantile with beta", {"top_entropy_quantile": 0.3, "beta": 0.1}, KL),
    Row("top_entropy_quantile 0", {"top_entropy_quantile": 0.0}),
    Row("entropy_coef", {"entropy_coef": 0.05}, OFF),
    Row("entropy_coef negative on policy", {"entropy_coef": -0.2}),
    Row("entropy_coef with quantile", {"entropy_coef": 0.3, "top_entropy_quantile": 0.5}, {**OFF, "tool_holes": True}),
    Row("use_adaptive_entropy first step", {"use_adaptive_entropy": True, "entropy_coef": 0.1}, OFF),
    Row("token advantages", batch={**OFF, "token_advantages": True}),
    Row("token advantages on policy", batch={"token_advantages": True}),
    Row("zero advantages", batch={**OFF, "zero_advantages": True}),
    Row("zero advantages on policy", batch={"zero_advantages": True}),
    Row("zero token advantages", batch={**OFF, "token_advantages": True, "zero_advantages": True}),
    Row("zero token advantages on policy", batch={"token_advantages": True, "zero_advantages": True}),
    Row("zero advantages with beta", {"beta": 0.1}, {**KL, "zero_advantages": True}),
    Row("tool_mask", batch={**OFF, "tool_holes": True}),
    Row("mask_truncated_completions", {"mask_truncated_completions": True}, {**OFF, "truncated": (0, 4)}),
    Row(
        "everything masked",
        {"mask_truncated_completions": True, "beta": 0.1},
        {**KL, "truncated": (0, 1, 2, 3, 4, 5)},
    ),
    Row("temperature", {"temperature": 0.7}, {**OFF, "temperature": 0.7}),
    Row("accumulation 4", batch=OFF, accumulation=4, steps_per_generation=4),
    Row("accumulation 4 of 8 steps", {"beta": 0.1}, KL, accumulation=4, steps_per_generation=8),
    Row(
        "accumulation 4 entropy", {"entropy_coef": 0.1}, {**OFF, "tool_holes": True}, accumulation=4,
        steps_per_generation=2,
    ),
    Row("evaluation", {"beta": 0.1}, KL, training=False),
    Row(
        "everything at once",
        sampler(
            "token_truncate",
            beta=0.1,
            delta=1.4,
            epsilon=0.1,
            epsilon_high=0.3,
            off_policy_mask_threshold=0.1,
            top_entropy_quantile=0.7,
            entropy_coef=0.05,
        ),
        {"old": 0.2, "ref": 0.5, "sampler": 0.6, "sampler_nan": True, "tool_holes": True, "token_advantages": True},
        accumulation=4,
        steps_per_generation=4,
    ),
)  # fmt: skip


CASES = [Case(row, loss_type, level) for row in ROWS for loss_type in LOSS_TYPES for level in LEVELS]


def refused_by_trl(case: Case) -> bool:
    """TRL's constructor refuses vespo with a sequence-level sampler correction."""
    corrected = case.options.get("use_vllm", False) and case.options.get("vllm_importance_sampling_correction", True)
    mode = case.options.get("vllm_importance_sampling_mode", "sequence_mask")
    return case.loss_type == "vespo" and corrected and mode.startswith("sequence")


def refused_by_us(case: Case) -> str:
    """The option that we refuse where TRL takes it and ignores it, else nothing."""
    return "delta" if "delta" in case.options and case.loss_type in ("cispo", "sapo", "vespo") else ""


# Everything that GRPOTrainer._compute_loss reads from itself or its arguments, and the options of GRPOConfig behind it.
READS_TO_OPTIONS: dict[str, tuple[str, ...]] = {
    "beta": ("beta",),
    "args.use_bias_correction_kl": ("use_bias_correction_kl",),
    "epsilon_low": ("epsilon",),
    "epsilon_high": ("epsilon_high",),
    "args.delta": ("delta",),
    "loss_type": ("loss_type",),
    "importance_sampling_level": ("importance_sampling_level",),
    "max_completion_length": ("max_completion_length",),
    "args.sapo_temperature_pos": ("sapo_temperature_pos",),
    "args.sapo_temperature_neg": ("sapo_temperature_neg",),
    "args.vespo_k_pos": ("vespo_k_pos",),
    "args.vespo_lambda_pos": ("vespo_lambda_pos",),
    "args.vespo_k_neg": ("vespo_k_neg",),
    "args.vespo_lambda_neg": ("vespo_lambda_neg",),
    "off_policy_mask_threshold": ("off_policy_mask_threshold",),
    "top_entropy_quantile": ("top_entropy_quantile",),
    "entropy_coef": ("entropy_coef",),
    "_entropy_bonus_enabled": ("entropy_coef", "use_adaptive_entropy"),
    "use_adaptive_entropy": ("use_adaptive_entropy",),
    "args.entropy_target": ("entropy_target",),
    "args.entropy_coef_min": ("entropy_coef_min",),
    "args.entropy_coef_max": ("entropy_coef_max",),
    "args.entropy_coef_delta": ("entropy_coef_delta",),
    "use_vllm": ("use_vllm",),
    "vllm_importance_sampling_correction": ("vllm_importance_sampling_correction",),
    "args.steps_per_generation": ("steps_per_generation",),
    "current_gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "router_aux_loss_coef": ("router_aux_loss_coef",),
    "aux_loss_enabled": ("router_aux_loss_coef",),
}
# Options that act before _compute_loss and reach it through its inputs.
INPUT_OPTIONS = (
    "mask_truncated_completions",
    "temperature",
    "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
)
# Machinery and state that no option sets.
READS_WITHOUT_OPTION = {
    "model", "accelerator", "args", "_metrics", "_last_world_entropy", "_entropy_window_stats",
    "_get_per_token_logps_and_entropies", "get_high_entropy_mask", "get_off_policy_mask", "get_gamma_weights",
}  # fmt: skip
# Inputs of _compute_loss that feed the model, not the loss.
MODEL_INPUTS = {
    "prompt_ids", "prompt_mask", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask",
    "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
}  # fmt: skip
LOSS_INPUTS = {
    "completion_ids": "targets",
    "completion_mask": "mask",
    "tool_mask": "mask",
    "advantages": "advantages",
    "old_per_token_logps": "old_logps",
    "ref_per_token_logps": "ref_logps",
    "sampling_per_token_logps": "sampler_logps",
    "importance_sampling_ratio": "sampler_logps",
    "num_items_in_batch": "num_items_in_batch",
}
# Options compared elsewhere than in the rows above, and the one that is outside the head.
COVERED_ELSEWHERE = {
    "entropy_target": "adaptive entropy over several optimizer steps",
    "entropy_coef_min": "adaptive entropy over several optimizer steps",
    "entropy_coef_max": "adaptive entropy over several optimizer steps",
    "entropy_coef_delta": "adaptive entropy over several optimizer steps",
    "scale_rewards": "against the real trainer, test_trainer.py",
    "reward_weights": "against the real trainer, test_trainer.py",
    "multi_objective_aggregation": "against the real trainer, test_trainer.py: `sum_then_normalize` is `weights=`; "
    "`normalize_then_sum` is two calls, per reward and group, then of their weighted sum over the batch",
    "router_aux_loss_coef": "not offered: the load-balancing loss comes from the model's routers, outside the head; "
    "add coef × aux_loss / gradient_accumulation_steps to `out.loss`, as TRL does",
}
