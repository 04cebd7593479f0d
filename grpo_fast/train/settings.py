"""Every setting of a run, by section. A field is a flag, a key of the YAML file, and a line of `--help`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from grpo_fast.config import LossOptions, RewardScale
from grpo_fast.errors import BadSettings

Dtype = Literal["auto", "float32", "bfloat16"]
Parallel = Literal["ddp", "fsdp2"]
Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "adamw_8bit"]
Switch = Literal["auto", "on", "off"]
OnBad = Literal["skip", "stop"]
Attention = Literal["auto", "flash_attn", "varlen", "xformers", "sdpa"]


def setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(slots=True, kw_only=True)
class ModelSettings:
    """The model and what of it is trained."""

    model: str = setting("tiny", "a folder with a checkpoint, a name on the hub, or tiny: built from a config")
    dtype: Dtype = setting("auto", "of the computation: auto is bfloat16 on CUDA and float32 on a CPU")
    freeze_vision: bool = setting(False, "train the language model alone; images are then encoded once")
    lora_rank: int = setting(0, "train a low-rank adapter of this rank instead of the weights; 0: off")
    lora_alpha: float = setting(32.0, "scale of the adapter, over its rank")
    lora_dropout: float = setting(0.0, "dropout before the adapter")
    lora_targets: list[str] = setting([], "modules that get an adapter; empty: the language model's linear layers")
    activation_checkpointing: bool = setting(False, "recompute activations in the backward pass to save memory")
    attention: Attention = setting("auto", "backend of attention; auto: the first of them that the machine has")
    liger: Switch = setting("auto", "liger-kernel's layers: auto uses them on CUDA where installed")
    trust_remote_code: bool = setting(False, "run code that a model's repository brings; off unless asked for")
    min_pixels: int | None = setting(None, "smallest area of an image; smaller ones are enlarged")
    max_pixels: int | None = setting(None, "largest area of an image; larger ones are made smaller")


@dataclass(slots=True, kw_only=True)
class DataSettings:
    """What is asked, and how it is worded."""

    data: list[str] = setting(["phantom"], "files, folders or hub names; phantom: the embedded synthetic questions")
    image_folders: list[str] = setting([], "where relative image paths start, one for each data file or one for all")
    eval_data: list[str] = setting([], "held-out questions; empty: phantom's own, or a share of the data")
    eval_share: float = setting(0.1, "share of the data held out where there is no eval_data")
    eval_samples: int = setting(256, "held-out questions asked at each evaluation; 0: all of them")
    max_samples: int = setting(0, "use at most this many questions; 0: all")
    modality: list[str] = setting([], "only questions about these modalities")
    question_type: list[str] = setting([], "only questions of these types")
    prompt: str = setting("auto", "think, no-think, think-after, plain, or a template or file with {Question} in it")
    max_prompt_tokens: int | None = setting(None, "longer prompts are left out, counted and named")
    on_bad: OnBad = setting("skip", "a record that cannot be used: skip, count and name it, or stop the run")


@dataclass(slots=True, kw_only=True)
class RolloutSettings:
    """What is sampled for a step. Temperature and length limit stand with the loss, which reads them too."""

    prompts_per_step: int = setting(16, "questions of one step, over all devices")
    group_size: int = setting(8, "completions of each question")
    top_k: int = setting(0, "sample from the k most probable tokens; 0: off")
    top_p: float = setting(1.0, "sample from the smallest set of tokens with this probability; 1: off")
    min_p: float = setting(0.0, "leave out tokens below this share of the best one's probability; 0: off")
    repetition_penalty: float = setting(1.0, "make tokens that were said before less likely; 1: off")
    stop: list[str] = setting([], "texts that end a completion")
    updates_per_rollout: int = setting(1, "passes over each step's completions")
    minibatches: int = setting(1, "optimizer updates in one such pass")
    filter_groups: bool = setting(False, "leave out groups whose rewards are all equal and draw others instead")
    filter_rounds: int = setting(4, "rollouts at most to fill a step when groups are left out")
    filter_low: float | None = setting(None, "also leave out groups whose mean accuracy is below this")
    filter_high: float | None = setting(None, "also leave out groups whose mean accuracy is above this")
    kv_bytes: int | None = setting(None, "memory for keys and values; default 60 % of what is free on CUDA")
    static_shapes: Switch = setting("auto", "decode at fixed shapes, with CUDA graphs; auto: for the tiny model alone")
    sampler_correction: bool = setting(False, "correct for the sampler's own log-probs (importance_sampling_*)")


@dataclass(slots=True, kw_only=True)
class RewardSettings:
    """What is good. Rewards are summed by weight, then compared within their group."""

    rewards: list[str] = setting(
        ["accuracy", "format"], "accuracy, format, repetition, length, or FILE.py:FUNCTION of TRL's, EasyR1's or "
        "MM-EUREKA's form",
    )  # fmt: skip
    reward_weights: list[float] = setting([], "one for each reward; empty: 1 each")
    reward_timeout: float = setting(30.0, "seconds after which a reward of a completion is given up")
    reward_workers: int | None = setting(None, "processes for rewards; default: 1 where one comes from a file, else 0")
    scale_rewards: RewardScale = setting("group", "divide advantages by the deviation of the group, batch or none")

    @property
    def workers(self) -> int:
        """A function from a file may hang: it runs where it can be stopped."""
        return int(any(".py:" in name for name in self.rewards)) if self.reward_workers is None else self.reward_workers


@dataclass(slots=True, kw_only=True)
class OptimSettings:
    """How the weights move."""

    steps: int | None = setting(None, "GRPO steps; default: what epochs ask for")
    epochs: float = setting(1.0, "passes over the data, where steps is not given")
    learning_rate: float = setting(1e-6, "of AdamW")
    lr_schedule: Schedule = setting("constant", "after the warm-up: constant, linear or cosine to lr_floor")
    lr_warmup: float = setting(0.0, "steps of linear warm-up, or below 1 a share of all steps")
    lr_floor: float = setting(0.0, "share of the learning rate that a falling schedule ends at")
    weight_decay: float = setting(0.0, "of AdamW; biases and norms have none")
    adam_beta1: float = setting(0.9, "of AdamW")
    adam_beta2: float = setting(0.999, "of AdamW")
    adam_epsilon: float = setting(1e-8, "of AdamW")
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: never")
    optimizer: Optimizer = setting("adamw", "adamw, or adamw_8bit (torchao or bitsandbytes)")
    token_budget: int = setting(16384, "packed tokens of one forward and backward; lower it when memory runs out")


@dataclass(slots=True, kw_only=True)
class WarmStartSettings:
    """The supervised phase: before GRPO, or all of `grpo-fast sft`."""

    warm_start: Switch = setting("auto", "auto: only a model that was built from a config is warmed up")
    warm_start_samples: int = setting(0, "labelled questions it may use; 0: an eighth of the data, at most 1024")
    warm_start_until: float = setting(0.45, "stop once accuracy on held-back training data passes this")
    sft_steps: int | None = setting(None, "supervised steps at most; default: what sft_epochs ask for")
    sft_epochs: float = setting(1.0, "passes over the conversations")
    sft_batch: int = setting(32, "conversations of one supervised step, over all devices")
    sft_learning_rate: float = setting(2e-5, "of the supervised phase")


@dataclass(slots=True, kw_only=True)
class RunSettings:
    """Where it runs, what it writes, when it looks up."""

    output: str = setting("", "the run's folder; empty: runs/ and the date (compare: comparison/, matrix: matrix/)")
    seed: int = setting(0, "of data order, sampling and a tiny model's weights")
    resume: Switch = setting("auto", "auto: go on from the folder's last checkpoint, if it has one; on: it must")
    eval_every: int = setting(20, "steps between evaluations; 0: only before and after")
    save_every: int = setting(50, "steps between checkpoints; 0: only at the end")
    keep: int = setting(2, "checkpoints kept, beside the best one")
    save_merged: bool = setting(False, "write an adapter's model merged instead of the adapter alone")
    samples_every: int = setting(1, "steps between looks into the completions (samples.jsonl); 0: never")
    parallel: Parallel = setting("ddp", "under torchrun: ddp, or fsdp2 to shard the weights")
    device: str = setting("auto", "cpu or cuda; auto: cuda where there is one")
    threads: int = setting(0, "CPU threads; 0: torch's choice")
    tensorboard: bool = setting(False, "also write TensorBoard's files")
    wandb: bool = setting(False, "also report to Weights & Biases")
    name: str = setting("", "of the run, where it is reported")


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "rollout": RolloutSettings,
    "rewards": RewardSettings,
    "loss": LossOptions,
    "optim": OptimSettings,
    "warm_start": WarmStartSettings,
    "run": RunSettings,
}
NOT_SETTINGS = frozenset({"gradient_accumulation_steps"})  # of the loss: the packer weighs micro-batches itself


@dataclass(slots=True, kw_only=True)
class Settings:
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    loss: LossOptions = field(default_factory=LossOptions)
    optim: OptimSettings = field(default_factory=OptimSettings)
    warm_start: WarmStartSettings = field(default_factory=WarmStartSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @property
    def max_tokens(self) -> int:
        """Of a completion; the loss calls it max_completion_length."""
        assert self.loss.max_completion_length is not None
        return self.loss.max_completion_length

    def __post_init__(self) -> None:
        for section, name, low in AT_LEAST:
            value = getattr(getattr(self, section), name)
            if value is not None and not low <= value < math.inf:
                raise BadSettings(f"{name} must be at least {low}{' and finite' * (value == math.inf)}, got {value}")
        for section, name, high in AT_MOST:
            value = getattr(getattr(self, section), name)
            if value > high:
                raise BadSettings(f"{name} must be at most {high}, got {value}")
        for name, value in (("adam_beta1", self.optim.adam_beta1), ("adam_beta2", self.optim.adam_beta2)):
            if not 0 <= value < 1:
                raise BadSettings(f"{name} must be at least 0 and below 1, got {value}")
        for section in (self.model, self.data, self.rollout, self.rewards, self.optim, self.warm_start, self.run):
            _check_choices(section)
        weights, names = self.rewards.reward_weights, self.rewards.rewards
        if not names:
            raise BadSettings("rewards is empty: name at least one, as in --rewards accuracy format")
        if weights and len(weights) != len(names):
            raise BadSettings(f"{len(weights)} reward_weights for {len(names)} rewards ({', '.join(names)})")
        if not 0 < self.data.eval_share < 1:
            raise BadSettings(f"eval_share must lie between 0 and 1, got {self.data.eval_share}")
        if self.loss.max_completion_length is None:
            raise BadSettings("max_completion_length limits what is sampled: give a number")
        if self.run.save_merged and not self.model.lora_rank:
            raise BadSettings("save_merged merges an adapter into the model: give a lora_rank, or leave it off")
        if self.rollout.group_size == 1:
            raise BadSettings("a group of one has nothing to compare its completion with: group_size must be 2 or more")
        if self.rollout.filter_groups:
            _check_filters(self.rollout, names)
        if self.rollout.minibatches > self.rollout.prompts_per_step:
            raise BadSettings(
                f"minibatches ({self.rollout.minibatches}) is above prompts_per_step ({self.rollout.prompts_per_step})"
            )


AT_LEAST = (
    ("rollout", "prompts_per_step", 1),
    ("rollout", "group_size", 1),
    ("rollout", "updates_per_rollout", 1),
    ("rollout", "minibatches", 1),
    ("rollout", "filter_rounds", 1),
    ("rollout", "kv_bytes", 1),
    ("optim", "steps", 0),
    ("optim", "epochs", 0),
    ("optim", "learning_rate", 0),
    ("optim", "token_budget", 1),
    ("optim", "lr_warmup", 0),
    ("optim", "lr_floor", 0),
    ("optim", "weight_decay", 0),
    ("optim", "adam_epsilon", 0),
    ("warm_start", "warm_start_samples", 0),
    ("warm_start", "warm_start_until", 0),
    ("warm_start", "sft_steps", 0),
    ("warm_start", "sft_epochs", 0),
    ("warm_start", "sft_learning_rate", 0),
    ("warm_start", "sft_batch", 1),
    ("run", "seed", 0),
    ("run", "keep", 1),
    ("run", "save_every", 0),
    ("run", "eval_every", 0),
    ("run", "samples_every", 0),
    ("run", "threads", 0),
    ("data", "max_samples", 0),
    ("data", "eval_samples", 0),
    ("data", "max_prompt_tokens", 1),
    ("model", "lora_rank", 0),
    ("rewards", "reward_workers", 0),
)
AT_MOST = (
    ("optim", "lr_floor", 1),
    ("warm_start", "warm_start_until", 1),
    ("run", "seed", 2**32 - 1),  # numpy takes no larger one
)


def _check_choices(section: Any) -> None:
    choices = {"dtype": Dtype, "liger": Switch, "on_bad": OnBad, "static_shapes": Switch, "scale_rewards": RewardScale,
               "lr_schedule": Schedule, "optimizer": Optimizer, "warm_start": Switch, "parallel": Parallel,
               "resume": Switch, "attention": Attention}  # fmt: skip
    for one in fields(section):
        if one.name in choices and getattr(section, one.name) not in get_args(choices[one.name]):
            allowed = ", ".join(get_args(choices[one.name]))
            raise BadSettings(f"{one.name} must be one of {allowed}; got {getattr(section, one.name)!r}")


def _check_filters(rollout: RolloutSettings, rewards: list[str]) -> None:
    low, high = rollout.filter_low, rollout.filter_high
    if (low is not None or high is not None) and "accuracy" not in rewards:
        raise BadSettings("filter_low and filter_high look at the reward accuracy, which is not among rewards")
    if low is not None and high is not None and low > high:
        raise BadSettings(f"filter_low ({low}) is above filter_high ({high}): every group would be left out")
