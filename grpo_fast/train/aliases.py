"""The names that users of TRL, VLM-R1, R1-V, Med-R1, open-r1 and EasyR1 type, and what they are here.

Batch sizes and counts of optimizer updates, which depend on other settings, are reckoned in `batches.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_fast.errors import BadSettings
from grpo_fast.train.conversions import (
    Alias,
    Outcome,
    chosen,
    every,
    fsdp,
    nothing,
    paths,
    refused,
    reports,
    resumed,
    revision,
    says,
    schedule_kwargs,
    share,
    switched,
    to,
)
from grpo_fast.train.fields import FALSE, FIELDS


@dataclass(slots=True)
class Translation:
    values: dict[str, Any] = field(default_factory=dict)  # by field
    notes: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)  # BATCH and UPDATES names with their numbers


def translate(
    given: Mapping[str, Any], own: Mapping[str, Any], spelled: Callable[[str], str], twins: Mapping[str, str]
) -> Translation:
    """What the aliases in `given` mean beside `own`, the fields set in the same place under their own names.

    `twins`: fields that another one stands for, as `sft_epochs` for `epochs` in the supervised phase.
    """
    found = Translation()
    setters = {name: spelled(name) for name in own}
    values = dict(own)
    for name in sorted(given, key=lambda one: ALIASES[one].weak):
        if name in COUNTS:
            found.counts[name] = given[name]
            continue
        outcome = _convert(name, given, spelled)
        if isinstance(outcome, str):
            found.notes.append(f"{spelled(name)} has no effect: {outcome}")
            continue
        taken = []
        for meant, value in outcome.items():
            target = twins.get(meant, meant)
            try:
                value = FIELDS[target].read(value)
            except BadSettings as error:
                raise BadSettings(f"{spelled(name)}: {error}") from None
            if target in values and values[target] != value:
                if ALIASES[name].weak:
                    found.notes.append(f"{spelled(name)} has no effect beside {setters[target]}")
                    continue
                raise BadSettings(
                    f"{spelled(name)} is {spelled(target)} here, and {setters[target]} sets that too: "
                    f"{_shown(values[target])} and {_shown(value)}"
                )
            values[target] = found.values[target] = value
            setters.setdefault(target, spelled(name))
            taken.append(f"{spelled(target)} {_shown(value)}")
        if taken:
            found.notes.append(f"{spelled(name)} is {', '.join(taken)} here")
    return found


def _convert(name: str, given: Mapping[str, Any], spelled: Callable[[str], str]) -> Outcome:
    if name == "dataset_name" and "data_file_paths" in given:  # VLM-R1's scripts give both, this one as a filler
        return f"{spelled('data_file_paths')} names the data"
    if name in ("lora_r", "lora_target_modules") and says(given.get("use_peft", True), FALSE):
        return f"{spelled('use_peft')} is off"
    try:
        return ALIASES[name].convert(given[name])
    except BadSettings as error:
        raise BadSettings(f"{spelled(name)}: {error}") from None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


IN_PROCESS = "rollouts are sampled in this process, from the weights being trained"
PACKED = "everything is packed"
LOGGED = "every step is logged, and completions go to samples.jsonl"
LOADER = "there is no loader process: questions are few, and images are opened as they are needed"
HUB = "nothing is uploaded: `hf upload NAME RUN/model` does it"
SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
}  # fmt: skip
DTYPES = {"auto": "auto", "bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
ATTENTION = {
    "flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn", "sdpa": "sdpa", "eager": "sdpa",
}  # fmt: skip
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
ADAMW_8BIT = ("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "paged_adamw_8bit")

BATCH = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
)  # fmt: skip
UPDATES = {  # counted in optimizer updates there, in rollouts here
    "max_steps": "steps", "save_steps": "save_every", "eval_steps": "eval_every", "warmup_steps": "lr_warmup",
}  # fmt: skip
COUNTS = (*BATCH, *UPDATES)

ALIASES: dict[str, Alias] = {
    **{name: nothing("it is counted in batches.py") for name in COUNTS},
    # model
    "model_name_or_path": to("model"),
    "model_path": to("model"),
    "torch_dtype": chosen("dtype", DTYPES, weak=True),
    "bf16": switched({"dtype": "bfloat16"}, {"dtype": "float32"}),
    "fp16": refused("training is in bfloat16 or float32: --dtype bfloat16"),
    "attn_implementation": chosen("attention", ATTENTION),
    "gradient_checkpointing": to("activation_checkpointing"),
    "gradient_checkpointing_kwargs": nothing("there is one way to recompute: --activation-checkpointing"),
    "freeze_vision_modules": to("freeze_vision"),
    "freeze_vision_tower": to("freeze_vision"),
    "use_peft": switched({"lora_rank": 16}, {"lora_rank": 0}, weak=True),  # 16 is TRL's lora_r
    "lora_r": to("lora_rank"),
    "lora_target_modules": to("lora_targets"),
    "lora_task_type": nothing("the adapter is always one of a causal language model"),
    "use_dora": refused("adapters are plain LoRA"),
    "use_rslora": refused("adapters are plain LoRA: give --lora-alpha for the scale you want"),
    "load_in_4bit": refused("weights are not quantised; --lora-rank 16 --freeze-vision needs the least memory"),
    "load_in_8bit": refused("weights are not quantised; --lora-rank 16 --freeze-vision needs the least memory"),
    "model_revision": Alias(revision),
    "use_liger_kernel": switched({"liger": "on"}, {"liger": "off"}),
    "use_liger_loss": nothing("the loss is fused with the head already"),
    "use_cache": nothing("rollouts always cache, updates never do"),
    "max_anyres_num": nothing("it is InternVL's; --max-pixels bounds a Qwen-VL's images"),
    # data
    "dataset_name": to("data"),
    "data_file_paths": Alias(lambda value: {"data": paths(value)}),
    "train_files": to("data"),
    "val_files": to("eval_data"),
    "image_root": to("image_folders"),
    "dataset_config": refused("name the files of that configuration in --data"),
    "dataset_train_split": nothing("the training split is read; --data takes any split's files"),
    "dataset_test_split": nothing("held-out questions are --eval-data, or --eval-share of the data"),
    "dataset_streaming": nothing("files are read as they are needed"),
    "val_split_ratio": Alias(share),
    "max_prompt_length": to("max_prompt_tokens"),
    "max_length": nothing("conversations are packed whole; --max-prompt-tokens leaves long questions out"),
    "max_seq_length": nothing("conversations are packed whole; --max-prompt-tokens leaves long questions out"),
    "question_template": to("prompt"),
    "system_prompt": refused("no system turn is added: word it in --prompt, a template with {Question} in it"),
    "task_type": nothing("--prompt words the question"),
    "arrow_cache_dir": nothing("nothing is converted, so nothing is cached"),
    "cache_dir": nothing("HF_HOME says where downloads are kept"),
    "data_seed": to("seed", weak=True),
    "packing": nothing(PACKED),
    "padding_free": nothing(PACKED),
    "assistant_only_loss": nothing("the supervised loss is on answers alone"),
    "completion_only_loss": nothing("the supervised loss is on answers alone"),
    # rollout
    "num_generations": to("group_size"),
    "num_iterations": to("updates_per_rollout"),
    "rollout_batch_size": to("prompts_per_step"),
    "max_response_length": to("max_completion_length"),
    "use_vllm": nothing(IN_PROCESS),
    **dict.fromkeys(
        ("vllm_mode", "vllm_device", "vllm_dtype", "vllm_gpu_memory_utilization", "vllm_max_model_len",
         "vllm_max_model_length", "vllm_server_host", "vllm_server_port", "vllm_server_base_url",
         "vllm_server_timeout", "vllm_tensor_parallel_size", "vllm_enable_sleep_mode", "cache_implementation",
         "ds3_gather_for_generation"),
        nothing(IN_PROCESS),
    ),
    "vllm_importance_sampling_correction": to("sampler_correction"),
    "vllm_importance_sampling_mode": to("importance_sampling_mode"),
    "vllm_importance_sampling_cap": to("importance_sampling_clip_max"),
    "vllm_importance_sampling_clip_max": to("importance_sampling_clip_max"),
    "vllm_importance_sampling_clip_min": to("importance_sampling_clip_min"),
    # rewards
    "reward_funcs": to("rewards"),
    "reward_method": nothing("accuracy looks at each answer's kind; a record's accu_reward_method is heeded"),
    "is_reward_customized_from_vlm_module": refused("name your reward: --rewards FILE.py:FUNCTION format"),
    "sync_ref_model": refused("the reference stays as it was loaded"),
    # loss and optimisation
    "kl_coef": to("beta"),
    "lr": to("learning_rate"),
    "num_train_epochs": to("epochs"),
    "total_epochs": to("epochs"),
    "lr_scheduler_type": chosen("lr_schedule", SCHEDULES),
    "lr_scheduler_kwargs": Alias(schedule_kwargs),
    "warmup_ratio": to("lr_warmup", weak=True),
    "optim": chosen("optimizer", {**dict.fromkeys(ADAMW, "adamw"), **dict.fromkeys(ADAMW_8BIT, "adamw_8bit")}),
    "per_device_eval_batch_size": nothing("evaluation is packed"),
    "auto_find_batch_size": nothing("--token-budget bounds what is computed at once"),
    "tf32": nothing("torch's own setting is left as it is"),
    # run
    "output_dir": to("output"),
    "save_checkpoint_path": to("output"),
    "overwrite_output_dir": switched({"resume": "off"}, "--resume auto goes on where a run stopped", weak=True),
    "resume_from_checkpoint": Alias(resumed),
    "run_name": to("name"),
    "experiment_name": to("name"),
    "save_total_limit": to("keep"),
    "save_limit": to("keep"),
    "save_freq": to("save_every"),
    "val_freq": to("eval_every"),
    "save_strategy": every("save_every"),
    "eval_strategy": every("eval_every"),
    "evaluation_strategy": every("eval_every"),
    "report_to": Alias(reports),
    "deepspeed": refused(
        "there is no DeepSpeed here: `torchrun --nproc-per-node N -m grpo_fast train --parallel fsdp2` shards "
        "weights, gradients and optimizer as ZeRO-3 does"
    ),
    "fsdp": Alias(fsdp),
    "push_to_hub": refused(HUB),
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision"), nothing(HUB)),
    **dict.fromkeys(
        ("logging_steps", "logging_strategy", "logging_first_step", "log_completions", "num_completions_to_print",
         "log_level", "disable_tqdm"),
        nothing(LOGGED),
    ),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_pin_memory", "remove_unused_columns"), nothing(LOADER)),
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_timeout", "ddp_backend", "fsdp_config", "local_rank", "torch_compile"),
        nothing("--parallel says all there is to say"),
    ),
    **dict.fromkeys(
        ("do_train", "do_eval", "eval_on_start", "load_best_model_at_end", "save_only_model", "bf16_full_eval"),
        nothing("held-out questions are asked before, during and after; the best checkpoint is kept beside the last"),
    ),
}  # fmt: skip
