"""Every setting by flag and by file, other trainers' names, batches, and what is said of mistakes."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from grpo_fast.errors import BadSettings
from grpo_fast.train.aliases import ALIASES, BATCH, UPDATES
from grpo_fast.train.conversions import paths
from grpo_fast.train.fields import FIELDS, LOSS_HELP, Field, build
from grpo_fast.train.flags import add_arguments, describe, from_yaml, settings_of, to_yaml
from grpo_fast.train.settings import NOT_SETTINGS, SECTIONS, Settings

FROZEN = """
activation-checkpointing adam-beta1 adam-beta2 adam-epsilon attention beta data delta device dtype entropy-coef
entropy-coef-delta entropy-coef-max entropy-coef-min entropy-target epochs epsilon epsilon-high eval-data eval-every
eval-samples eval-share filter-groups filter-high filter-low filter-rounds freeze-vision group-size image-folders
importance-sampling-clip-max importance-sampling-clip-min importance-sampling-correction importance-sampling-level
importance-sampling-mode keep kv-bytes learning-rate liger lora-alpha lora-dropout lora-rank lora-targets loss-type
lr-floor lr-schedule lr-warmup mask-truncated-completions max-completion-length max-grad-norm max-pixels
max-prompt-tokens max-samples min-p min-pixels minibatches modality model name off-policy-mask-threshold on-bad
optimizer output parallel prompt prompts-per-step question-type repetition-penalty resume reward-timeout
reward-weights reward-workers rewards sampler-correction samples-every sapo-temperature-neg sapo-temperature-pos
save-every save-merged scale-rewards seed sft-batch sft-epochs sft-learning-rate sft-steps softcap static-shapes steps
stop temperature tensorboard threads token-budget top-entropy-quantile top-k top-p trust-remote-code
updates-per-rollout use-adaptive-entropy use-bias-correction-kl vespo-k-neg vespo-k-pos vespo-lambda-neg
vespo-lambda-pos wandb warm-start warm-start-samples warm-start-until weight-decay
"""
FLAGS = FROZEN.split()


def parser(command: str = "train") -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"grpo-fast {command}")
    add_arguments(made, command=command)
    return made


TRAIN, SFT = parser("train"), parser("sft")


def read(*argv: str, command: str = "train") -> Settings:
    return settings_of((TRAIN if command == "train" else SFT).parse_args(argv), command=command)


def value(settings: Settings, name: str) -> Any:
    return getattr(getattr(settings, FIELDS[name].section), name)


def other(field: Field) -> Any:
    """A valid value that is not the default."""
    by_name: dict[str, Any] = {
        "rewards": ["format"], "reward_weights": [2.0, 0.5], "eval_share": 0.25, "delta": 4.0, "epsilon_high": 0.5,
        "scale_rewards": "none", "top_entropy_quantile": 0.5, "group_size": 4, "minibatches": 2,
    }  # fmt: skip
    if field.name in by_name:
        return by_name[field.name]
    if field.choices:
        return next(one for one in field.choices if one != field.default)
    one = {bool: not field.default, int: 7, float: 0.75, str: "other"}[field.kind]
    return [one, one] if field.many else one


def in_shell(field: Field, chosen: Any) -> list[str]:
    return [str(one) for one in (chosen if field.many else [chosen])]


# -- every field ------------------------------------------------------------------------------------------------------


def test_the_flags_are_frozen() -> None:
    assert sorted(name.replace("_", "-") for name in FIELDS) == FLAGS
    options = {option for action in TRAIN._actions for option in action.option_strings}
    assert {f"--{name}" for name in FLAGS} <= options
    assert {"--recipe", "--config", "--print-settings", "--json", "--batch-unit", "--help"} <= options
    assert {f"--{name}" for name in ALIASES} <= options


def test_every_field_of_every_section_is_a_flag_with_help() -> None:
    loss = [one.name for one in dataclasses.fields(SECTIONS["loss"]) if one.name not in NOT_SETTINGS]
    assert list(LOSS_HELP) == loss
    declared = [one.name for kind in SECTIONS.values() for one in dataclasses.fields(kind)]
    assert sorted(declared) == sorted([*FIELDS, *NOT_SETTINGS])
    assert not set(FIELDS) & set(ALIASES)
    assert all(field.help for field in FIELDS.values())
    shown = TRAIN.format_help()
    for field in FIELDS.values():
        assert f"--{field.name.replace('_', '-')} " in shown, field.name
    assert "_vision" not in shown and "--no-" not in shown and "--model_name_or_path" not in shown
    assert "(default 1e-06)" in shown and "60 % of" in " ".join(shown.split()) and "--lora-rank 64" in shown


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_by_flag_and_by_file(name: str, tmp_path: Path) -> None:
    field = FIELDS[name]
    chosen = other(field)
    assert chosen != field.default
    base = ["--model", "somewhere"] if name != "model" else []
    base += ["--lora-rank", "8"] if name == "save_merged" else []
    dashes, underscores = f"--{name.replace('_', '-')}", f"--{name}"
    for spelling in (dashes, underscores):
        assert value(read(*base, spelling, *in_shell(field, chosen)), name) == chosen
    if not field.many:
        assert value(read(*base, f"{dashes}={chosen}"), name) == chosen
    for nested in (False, True):
        file = tmp_path / f"{nested}.yaml"
        file.write_text(yaml.safe_dump({field.section: {name: chosen}} if nested else {name: chosen}))
        assert value(read(*base, "--config", str(file)), name) == chosen
        if name == "model":
            continue
        again = value(read(*base, "--config", str(file), dashes, *in_shell(field, field.default or other(field))), name)
        assert again == (field.default or other(field))  # flags are above files


def test_the_forms_of_a_value() -> None:
    real = ["--model", "x"]
    assert read(*real, "--freeze-vision").model.freeze_vision
    assert read(*real, "--freeze_vision", "true").model.freeze_vision
    assert not read(*real, "--freeze-vision", "--no-freeze-vision").model.freeze_vision
    assert not read(*real, "--no_freeze_vision").model.freeze_vision
    assert not read(*real, "--freeze_vision", "False").model.freeze_vision
    assert read(*real, "--steps", "none").optim.steps is None
    assert read(*real, "--token-budget", "1e5").optim.token_budget == 100_000
    assert read(*real, "--data", "a", "b", "--data", "c").data.data == ["a", "b", "c"]
    assert read(*real, "--reward-weights", "1", "-0.5").rewards.reward_weights == [1.0, -0.5]
    assert read(*real, "--scale_rewards", "True").rewards.scale_rewards == "group"
    assert read(*real, "--scale_rewards", "false").rewards.scale_rewards == "none"


def test_yaml_where_it_reads_something_else_than_was_meant() -> None:
    text = "learning_rate: 1e-6\nwarm_start: on\nresume: off\nscale_rewards:\ndata: a.jsonl\nsteps: none\nbeta: 0\n"
    assert from_yaml(text, "x") == {
        "learning_rate": 1e-6, "warm_start": "on", "resume": "off", "scale_rewards": "none", "data": ["a.jsonl"],
        "steps": None, "beta": 0.0,
    }  # fmt: skip
    assert from_yaml("model: x\nwarm_start:\n  sft_batch: 3\noptim:\n", "x") == {"model": "x", "sft_batch": 3}
    assert from_yaml("", "x") == from_yaml("# nothing\n", "x") == {}


texts = st.text(st.characters(codec="utf-8"), max_size=12)
KINDS = {bool: st.booleans(), int: st.integers(1, 10**6), float: st.floats(0.001, 1.0), str: texts}


def values_of(field: Field) -> st.SearchStrategy[Any]:
    one = st.sampled_from(field.choices) if field.choices else KINDS[field.kind]
    one = st.lists(one, min_size=1, max_size=3) if field.many else one
    return st.none() | one if field.optional and field.name != "max_completion_length" else one


@given(st.fixed_dictionaries({}, optional={name: values_of(field) for name, field in FIELDS.items()}))
@hypothesis_settings(max_examples=40)
def test_random_settings_survive_yaml(values: dict[str, Any]) -> None:
    try:
        made = build(values)
    except BadSettings:
        assume(False)
    assert build(from_yaml(to_yaml(made), "x")) == made
    assert build(from_yaml(to_yaml(made, defaults=False), "x")) == made


def test_yaml_says_what_each_field_is() -> None:
    text = to_yaml(build({}))
    for line in (line for line in text.splitlines() if line.startswith("  ")):
        name = line.split(":")[0].strip()
        assert line.endswith(f"  # {FIELDS[name].help}"), line
    assert to_yaml(build({}), defaults=False) == "{}\n"
    assert to_yaml(build({"beta": 0.5}), defaults=False).count("\n") == 3


# -- mistakes ---------------------------------------------------------------------------------------------------------

WRONG_FLAGS = [
    (["--learing-rate", "3"], "unknown setting --learing-rate; did you mean --learning-rate?"),
    (["--learing_rate=3"], "unknown setting --learing_rate; did you mean --learning_rate?"),
    (["--num_generation", "4"], "unknown setting --num_generation; did you mean --num_generations?"),
    (["--data", "x", "--zzzzqqqq"], "unknown setting --zzzzqqqq\n"),
    (["--learning", "3"], "unknown setting --learning"),  # an abbreviation is not guessed
    (["file.jsonl"], "what is 'file.jsonl' for?"),
    (["worker.rollout.group_size=5"], "unknown setting worker.rollout.group_size; did you mean --group_size?"),
    (["--steps", "x"], "steps must be a whole number or none, got 'x'"),
    (["--learning-rate", "nan"], "learning_rate must be a number, got 'nan'"),
    (["--keep", "2.5"], "keep must be a whole number, got '2.5'"),
    (["--lr-schedule", "cosin"], "lr_schedule must be one of constant, linear, cosine, got 'cosin'; did you mean"),
    (["--freeze-vision", "perhaps"], "freeze_vision must be true or false, got 'perhaps'"),
    (["--steps"], "expected one argument"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG_FLAGS, ids=[" ".join(argv) for argv, _ in WRONG_FLAGS])
@pytest.mark.parametrize("below", [False, True], ids=["alone", "as a subcommand"])
def test_wrong_flags(argv: list[str], said: str, below: bool, capsys: pytest.CaptureFixture[str]) -> None:
    top: argparse.ArgumentParser = TRAIN
    if below:
        top = argparse.ArgumentParser(prog="grpo-fast")
        add_arguments(top.add_subparsers(dest="command").add_parser("train"), command="train")
        argv = ["train", *argv]
    with pytest.raises(SystemExit) as exit_:
        top.parse_args(argv)
    shown = capsys.readouterr().err
    assert exit_.value.code == 2 and said in shown
    assert shown.startswith("grpo-fast: ") and len(shown.splitlines()) == 2 and "grpo-fast train --help" in shown


WRONG_FILES = [
    ("optim:\n  learing_rate: 1\n", "x.yaml, line 2: unknown setting learing_rate; did you mean learning_rate?"),
    ("lr: 1\nstep: 3\n", "x.yaml, line 2: unknown setting step; did you mean steps?"),
    ("optim:\n  beta: 1\n", "x.yaml, line 2: beta belongs in loss, not in optim"),
    ("beta: 1\nloss:\n  beta: 2\n", "x.yaml, line 3: beta is set a second time (first: x.yaml, line 1)"),
    ("beta: 1\nbeta: 2\n", "x.yaml, line 2: beta is set a second time (first in line 1)"),
    ("\nsteps: many\n", "x.yaml, line 2: steps must be a whole number or none, got 'many'"),
    ("name: 2024-01-01\n", "x.yaml, line 1: name must be text (in quotes)"),
    ("name: 2024-99-99\n", "x.yaml: not YAML: month must be in 1..12"),
    ("output:\n", "x.yaml, line 1: output must be text (in quotes), got nothing"),
    ("a: [1\nb: 2\n", "x.yaml, line 2: not YAML"),
    ("- a\n", "x.yaml: settings are lines of `name: value`"),
    ("name: !!python/object/apply:os.system ['true']\n", "x.yaml, line 1: a YAML tag (!) has no place"),
    ("run: 3\n", "x.yaml, line 1: run is a section, not a setting"),
    ("? [a, b]\n: 3\n", "x.yaml, line 1: not YAML: found unhashable key"),
    ("? {a: 1}\n: 3\n", "not YAML"),
    ("<<: {beta: 1}\n", "x.yaml, line 1: a setting's name is plain text"),
    ("a: 1\n---\nb: 2\n", "not YAML"),
    ("1: 2\n", "unknown setting 1"),
    ("optim: sgd\n", "x.yaml: optim: 'sgd' has no counterpart here"),
    ("batch_unit: images\n", "x.yaml, line 1: batch_unit is completions or prompts, got 'images'"),
    ("deepspeed: zero3.json\n", "x.yaml: deepspeed: there is no DeepSpeed here"),
    ("num_generations: some\n", "x.yaml: num_generations: group_size must be a whole number, got 'some'"),
]


@pytest.mark.parametrize(("text", "said"), WRONG_FILES, ids=[text for text, _ in WRONG_FILES])
def test_wrong_files(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    with pytest.raises(BadSettings) as error:
        read("--config", "x.yaml")
    assert said in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"nowhere\.yaml: No such file"):
        read("--config", "nowhere.yaml")
    with pytest.raises(BadSettings, match="Is a directory"):
        read("--config", str(tmp_path))
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSettings, match="not UTF-8"):
        read("--config", str(tmp_path / "x"))


@pytest.mark.parametrize(
    "typed",
    [
        "lr-warmup -3", "lr-floor 5", "lr-floor -1", "weight-decay -1", "adam-beta1 1.0", "adam-beta2 -0.1",
        "adam-epsilon -1", "learning-rate inf", "epochs inf", "max-samples -3", "eval-samples -1", "kv-bytes -5",
        "sft-learning-rate -1", "sft-epochs -1", "warm-start-samples -1", "warm-start-until 45", "threads -1",
        "samples-every -1", "max-prompt-tokens 0", "seed -1", "seed 4294967296", "group-size 1",
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing(typed: str) -> None:
    """Each of them trained silently, or ended in a traceback of torch's or numpy's after the first evaluation."""
    name, text = typed.split()
    with pytest.raises(BadSettings, match=name.replace("-", "_")):
        read("--model", "x", f"--{name}={text}")


def test_filters_that_could_not_filter() -> None:
    groups = ["--model", "x", "--filter-groups"]
    with pytest.raises(BadSettings, match="filter_low and filter_high look at the reward accuracy"):
        read(*groups, "--filter-low", "0.1", "--rewards", "format")
    with pytest.raises(BadSettings, match=r"filter_low \(0.9\) is above filter_high \(0.1\)"):
        read(*groups, "--filter-low", "0.9", "--filter-high", "0.1")
    assert read(*groups, "--filter-low", "0.1", "--filter-high", "0.9").rollout.filter_low == 0.1


def test_contradictions_are_settings_errors() -> None:
    with pytest.raises(BadSettings, match="delta bounds the clipped losses"):
        read("--model", "x", "--loss-type", "vespo", "--delta", "3")
    with pytest.raises(BadSettings, match="3 reward_weights for 2 rewards"):
        read("--model", "x", "--reward-weights", "1", "2", "3")
    with pytest.raises(BadSettings, match="data is empty"):
        read("--model", "x", "--data")


# -- other trainers' names --------------------------------------------------------------------------------------------

# name: (what is typed, what it sets); a word in place of settings: part of the reason why it has no effect
TAKEN: dict[str, tuple[str, dict[str, Any] | str]] = {
    "model_name_or_path": ("a/b", {"model": "a/b"}),
    "model_path": ("a/b", {"model": "a/b"}),
    "torch_dtype": ("bfloat16", {"dtype": "bfloat16"}),
    "bf16": ("", {"dtype": "bfloat16"}),
    "fp16": ("false", "off"),
    "attn_implementation": ("flash_attention_2", {"attention": "flash_attn"}),
    "gradient_checkpointing": ("true", {"activation_checkpointing": True}),
    "gradient_checkpointing_kwargs": ("{}", "recompute"),
    "freeze_vision_modules": ("true", {"freeze_vision": True}),
    "freeze_vision_tower": ("true", {"freeze_vision": True}),
    "use_peft": ("true", {"lora_rank": 16}),
    "lora_r": ("64", {"lora_rank": 64}),
    "lora_target_modules": ("q_proj v_proj", {"lora_targets": ["q_proj", "v_proj"]}),
    "lora_task_type": ("CAUSAL_LM", "adapter"),
    "use_dora": ("false", "off"),
    "use_rslora": ("false", "off"),
    "load_in_4bit": ("false", "off"),
    "load_in_8bit": ("false", "off"),
    "model_revision": ("main", "what is read"),
    "use_liger_kernel": ("true", {"liger": "on"}),
    "use_liger_loss": ("true", "fused"),
    "use_cache": ("false", "cache"),
    "max_anyres_num": ("12", "InternVL"),
    "dataset_name": ("org/set", {"data": ["org/set"]}),
    "data_file_paths": ("a.jsonl:b.jsonl", {"data": ["a.jsonl", "b.jsonl"]}),
    "train_files": ("a.parquet", {"data": ["a.parquet"]}),
    "val_files": ("b.parquet", {"eval_data": ["b.parquet"]}),
    "image_root": ("images", {"image_folders": ["images"]}),
    "dataset_config": ("none", "off"),
    "dataset_train_split": ("train", "split"),
    "dataset_test_split": ("test", "held-out"),
    "dataset_streaming": ("true", "as they are needed"),
    "val_split_ratio": ("0.2", {"eval_share": 0.2}),
    "max_prompt_length": ("1024", {"max_prompt_tokens": 1024}),
    "max_length": ("1024", "packed whole"),
    "max_seq_length": ("1024", "packed whole"),
    "question_template": ("no-think", {"prompt": "no-think"}),
    "system_prompt": ("none", "off"),
    "task_type": ("rec", "--prompt"),
    "arrow_cache_dir": ("x", "cached"),
    "cache_dir": ("x", "HF_HOME"),
    "data_seed": ("42", {"seed": 42}),
    "packing": ("true", "packed"),
    "padding_free": ("true", "packed"),
    "assistant_only_loss": ("true", "answers"),
    "completion_only_loss": ("true", "answers"),
    "num_generations": ("4", {"group_size": 4}),
    "num_iterations": ("2", {"updates_per_rollout": 2}),
    "rollout_batch_size": ("512", {"prompts_per_step": 512}),
    "max_response_length": ("99", {"max_completion_length": 99}),
    "vllm_importance_sampling_correction": ("true", {"sampler_correction": True}),
    "vllm_importance_sampling_mode": ("token_mask", {"importance_sampling_mode": "token_mask"}),
    "vllm_importance_sampling_cap": ("2", {"importance_sampling_clip_max": 2.0}),
    "vllm_importance_sampling_clip_max": ("2", {"importance_sampling_clip_max": 2.0}),
    "vllm_importance_sampling_clip_min": ("0.5", {"importance_sampling_clip_min": 0.5}),
    "reward_funcs": ("format accuracy", {"rewards": ["format", "accuracy"]}),
    "reward_method": ("mcq", "accu_reward_method"),
    "is_reward_customized_from_vlm_module": ("False", "off"),
    "sync_ref_model": ("false", "off"),
    "kl_coef": ("0.1", {"beta": 0.1}),
    "lr": ("0.1", {"learning_rate": 0.1}),
    "num_train_epochs": ("2", {"epochs": 2.0}),
    "total_epochs": ("2", {"epochs": 2.0}),
    "lr_scheduler_type": ("cosine_with_min_lr", {"lr_schedule": "cosine"}),
    "lr_scheduler_kwargs": ('{"min_lr_rate": 0.1}', {"lr_floor": 0.1}),
    "warmup_ratio": ("0.1", {"lr_warmup": 0.1}),
    "optim": ("adamw_bnb_8bit", {"optimizer": "adamw_8bit"}),
    "per_device_eval_batch_size": ("8", "packed"),
    "auto_find_batch_size": ("true", "--token-budget"),
    "tf32": ("true", "torch"),
    "output_dir": ("out", {"output": "out"}),
    "save_checkpoint_path": ("out", {"output": "out"}),
    "overwrite_output_dir": ("true", {"resume": "off"}),
    "resume_from_checkpoint": ("true", {"resume": "on"}),
    "run_name": ("n", {"name": "n"}),
    "experiment_name": ("n", {"name": "n"}),
    "save_total_limit": ("5", {"keep": 5}),
    "save_limit": ("5", {"keep": 5}),
    "save_freq": ("7", {"save_every": 7}),
    "val_freq": ("7", {"eval_every": 7}),
    "save_strategy": ("no", {"save_every": 0}),
    "eval_strategy": ("steps", "number of steps"),
    "evaluation_strategy": ("no", {"eval_every": 0}),
    "report_to": ("wandb tensorboard", {"wandb": True, "tensorboard": True}),
    "deepspeed": ("none", "off"),
    "fsdp": ("full_shard auto_wrap", {"parallel": "fsdp2"}),
    "push_to_hub": ("false", "off"),
    "max_steps": ("30", {"steps": 30}),
    "save_steps": ("30", {"save_every": 30}),
    "eval_steps": ("30", {"eval_every": 30}),
    "warmup_steps": ("30", {"lr_warmup": 30.0}),
    "per_device_train_batch_size": ("16", {"prompts_per_step": 2}),
    "gradient_accumulation_steps": ("5", {"prompts_per_step": 5}),
    "steps_per_generation": ("4", {"prompts_per_step": 4, "minibatches": 4}),
    "generation_batch_size": ("32", {"prompts_per_step": 4, "minibatches": 4}),
}
REASONS = {
    name: "has no effect"
    for name in ALIASES
    if name not in TAKEN
    and name.startswith(("vllm_", "use_vllm", "hub_", "log", "num_completions", "dataloader_", "ddp_", "do_", "eval_",
                         "load_best", "save_only", "bf16_full", "disable_tqdm", "remove_unused", "fsdp_config",
                         "local_rank", "torch_compile", "cache_implementation", "ds3_"))
}  # fmt: skip


def test_every_alias_is_tried() -> None:
    assert set(TAKEN) | set(REASONS) == set(ALIASES)


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("spelling", ["_", "-"])
def test_other_names(name: str, spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed, meant = TAKEN.get(name, ("1", REASONS.get(name, "")))
    base = [] if name in ("model_name_or_path", "model_path") else ["--model", "x"]
    words = typed.split(" ") if typed and not typed.startswith("{") else [typed] if typed else []
    settings = read(*base, f"--{name.replace('_', spelling)}", *words)
    said = capsys.readouterr().err
    assert said.startswith("grpo-fast: note: ") and f"--{name}" in said and said.count("\n") == 1, said
    plain = read(*base) if base else read("--model", "a/b")
    changed = {one: value(settings, one) for one in FIELDS if value(settings, one) != value(plain, one)}
    if isinstance(meant, str):
        assert changed == {} and meant in said and "has no effect: " in said
    else:
        expected = {one: new for one, new in meant.items() if new != value(plain, one)}
        assert changed == expected or name in ("model_name_or_path", "model_path")
        assert all(value(settings, one) == new for one, new in meant.items())
        assert " here" in said or name in BATCH
        for one in meant:
            assert f"--{one.replace('_', '-')}" in said or name in BATCH


def test_every_backend_of_attention_can_be_asked_for() -> None:
    from grpo_fast.policy.attention import BACKENDS

    assert FIELDS["attention"].choices == ("auto", *BACKENDS)


REFUSED = [
    (["--deepspeed", "zero3.json"], "--parallel fsdp2"),
    (["--fp16"], "bfloat16"),
    (["--load_in_4bit"], "not quantised"),
    (["--push_to_hub", "true"], "hf upload"),
    (["--system_prompt", "You are"], "--prompt"),
    (["--attn_implementation", "paged"], "no counterpart here; known: flash_attention_2"),
    (["--report_to", "mlflow"], "--report_to: 'mlflow' is not known here"),
    (["--optim", "adafactor"], "adamw_torch"),
    (["--lr_scheduler_type", "polynomial"], "cosine"),
    (["--lr_scheduler_kwargs", "{"], "JSON is expected"),
    (["--lr_scheduler_kwargs", '{"power": 2}'], "only min_lr_rate"),
    (["--resume_from_checkpoint", "out/checkpoint-100"], "--output RUN --resume on"),
    (["--fsdp", "full_shard offload"], "not offloaded"),
    (["--model_revision", "v2"], "hf download"),
    (["--use_vllm_x"], "unknown"),
    (["--num_generations", "4", "--group-size", "8"], "--num_generations is --group-size here, and --group-size sets"),
    (["--bf16", "--dtype", "float32"], "--bf16 is --dtype here"),
    (["--max_steps", "4", "--steps", "8"], "--max_steps is --steps here, and both are given"),
    (["--save_steps", "0.5"], "a share of them is not understood"),
    (["--per_device_train_batch_size", "0"], "must be a whole number above 0"),
    (["--per_device_train_batch_size", "8", "--prompts-per-step", "8"], "both set the batch"),
    (["--bf16", "maybe"], "true or false is expected"),
]


@pytest.mark.parametrize(("argv", "said"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_refused_names_say_what_takes_their_place(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        read("--model", "x", *argv)
    except BadSettings as error:
        assert said in str(error)
    except SystemExit:
        assert said in capsys.readouterr().err
    else:
        raise AssertionError("was taken")


def test_names_that_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    settings = read(
        "--model_name_or_path", "m", "--dataset-name", "not_used", "--data_file_paths", "a.jsonl:b.jsonl",
        "--image_folders", "x:y", "--bf16", "--torch_dtype", "float32", "--use_peft", "true", "--lora_r", "32",
        "--seed", "3", "--data_seed", "42", "--warmup_steps", "0", "--report_to", "none",
    )  # fmt: skip
    assert settings.data.data == ["a.jsonl", "b.jsonl"] and settings.data.image_folders == ["x", "y"]
    assert settings.model.dtype == "bfloat16" and settings.model.lora_rank == 32 and settings.run.seed == 3
    said = capsys.readouterr().err
    assert "--dataset_name has no effect: --data_file_paths names the data" in said
    assert "--data_seed has no effect beside --seed" in said and "--torch_dtype has no effect beside --bf16" in said
    assert read("--model", "m", "--use_peft", "false", "--lora_r", "32").model.lora_rank == 0
    assert read("--model", "m", "--image-folders", "x:y").data.image_folders == ["x:y"]
    for argv in (["--warmup_ratio", "0.1", "--warmup_steps", "0"], ["--warmup_steps", "0", "--warmup_ratio", "0.1"]):
        assert read("--model", "m", *argv).optim.lr_warmup == 0.1
    assert read("--model", "m", "--save_strategy", "no", "--save_steps", "9").run.save_every == 0
    assert read("--model", "m", "--max_steps", "-1").optim.steps is None


def test_paths_are_parted_by_colons_where_they_are_several() -> None:
    for text, parts in {
        "a:b": ["a", "b"],
        "/d/a.jsonl:/d/b.jsonl:": ["/d/a.jsonl", "/d/b.jsonl"],
        r"C:\d\a.jsonl:D:/b.jsonl": [r"C:\d\a.jsonl", "D:/b.jsonl"],
        "org/name": ["org/name"],
        "org/name:train": ["org/name:train"],
        "phantom:test": ["phantom:test"],
        "hf://datasets/org/name:b.jsonl": ["hf://datasets/org/name", "b.jsonl"],
        "http://host:8080/a.jsonl": ["http://host:8080/a.jsonl"],
    }.items():
        assert paths(text) == parts
    assert paths(["a:b", "c"]) == ["a", "b", "c"]


def test_other_names_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "grpo.yaml"
    file.write_text(
        "model_name_or_path: m\nnum_generations: 4\nbf16: true\nreport_to:\n- wandb\nsave_strategy: no\nmax_steps: -1\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr_rate: 0.1\nlogging_steps: 1\n"
        "per_device_train_batch_size: 4\ngradient_accumulation_steps: 3\ngradient_checkpointing_kwargs:\n  a: false\n"
    )
    settings = read("--config", str(file))
    assert settings.model.model == "m" and settings.rollout.group_size == 4 and settings.rollout.prompts_per_step == 3
    assert settings.run.wandb and settings.run.save_every == 0 and settings.optim.lr_floor == 0.1
    assert "note: num_generations is group_size 4 here\n" in capsys.readouterr().err
    # a flag is above the file, under whichever name: 4 × 3 completions are 2 groups of 6
    assert read("--config", str(file), "--num_generations", "6").rollout.prompts_per_step == 2
    assert read("--config", str(file), "--prompts-per-step", "9").rollout.prompts_per_step == 9
    assert read("--config", str(file), "--batch-unit", "prompts").rollout.prompts_per_step == 12


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "world", "prompts", "minibatches"),
    [
        (["8", "2", "8"], 8, 16, 1),  # VLM-R1's script on 8 GPUs
        (["1", "2", "4", "--batch-unit", "prompts"], 2, 4, 1),  # Med-R1 on 2 GPUs
        (["8", "4", "8", "--steps_per_generation", "8"], 1, 8, 2),
        (["8", "4", "8", "--generation_batch_size", "64"], 2, 8, 1),
    ],
)
def test_batches_count_what_their_trainers_count(
    argv: list[str], world: int, prompts: int, minibatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    device, accumulation, group, *more = argv
    settings = read(
        "--model", "x", "--per_device_train_batch_size", device, "--gradient_accumulation_steps", accumulation,
        "--num_generations", group, *more,
    )  # fmt: skip
    assert (settings.rollout.prompts_per_step, settings.rollout.minibatches) == (prompts, minibatches)


def test_a_batch_that_is_no_whole_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(BadSettings) as error:
        read("--model", "x", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4",
             "--num_generations", "6")  # fmt: skip
    for part in ("2 per device × 4 × 8 devices = 64", "64 / 6 = 10.67", "--prompts-per-step 10 or 11", "--batch-unit"):
        assert part in str(error.value)
    one = ["--model", "x", "--per_device_train_batch_size", "4"]
    with pytest.raises(BadSettings, match="--generation_batch_size 40 is no multiple of 4 × 8 devices"):
        read(*one, "--generation_batch_size", "40")
    with pytest.raises(BadSettings, match="3 batches per rollout are no multiple of 2"):
        read(*one, "--gradient_accumulation_steps", "2", "--steps_per_generation", "3")
    with pytest.raises(BadSettings, match="say one thing"):
        read(*one, "--generation_batch_size", "32", "--steps_per_generation", "1")


def test_steps_are_updates_there_and_rollouts_here() -> None:
    settings = read("--model", "x", "--num_iterations", "2", "--minibatches", "2", "--max_steps", "101",
                    "--save_steps", "40", "--eval_steps", "8", "--warmup_steps", "0.1")  # fmt: skip
    assert (settings.optim.steps, settings.run.save_every, settings.run.eval_every) == (26, 10, 2)
    assert settings.optim.lr_warmup == 0.1  # a share stays one


def test_describe_counts_prompts_and_completions() -> None:
    settings = read("--model", "x", "--prompts-per-step", "10", "--group-size", "4", "--minibatches", "2")
    text = "\n".join(describe(settings, world=4))
    assert "10 prompts × 4 completions = 40 completions" in text
    assert "2 or 3 prompts, 8 or 12 completions on each" in text
    assert "2 per step of 5 prompts" in text
    assert "devices" not in "\n".join(describe(settings))
    assert "32 conversations, 8 on each of 4 devices" in "\n".join(describe(settings, world=4, command="sft"))


# -- sft --------------------------------------------------------------------------------------------------------------


def test_sft_reads_its_own_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = read("--model", "x", "--learning_rate", "1e-4", "--num_train_epochs", "3", "--max_steps", "50",
                    "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "8", "--beta", "0.3",
                    command="sft")  # fmt: skip
    warm = settings.warm_start
    assert (warm.sft_learning_rate, warm.sft_epochs, warm.sft_steps, warm.sft_batch) == (1e-4, 3.0, 50, 64)
    assert settings.optim == Settings().optim
    said = capsys.readouterr().err
    assert "--beta has no effect in sft" in said and "64 conversations per step" in said
    with pytest.raises(BadSettings, match="--epochs is --sft-epochs in sft, and both are given"):
        read("--model", "x", "--epochs", "2", "--sft-epochs", "3", command="sft")
    shown = SFT.format_help()
    assert "--sft-batch" in shown and "--max-completion-length" in shown
    assert "--group-size" not in shown and "--beta" not in shown


def test_a_file_for_grpo_says_what_sft_does_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: x\nlearning_rate: 0.1\n")
    assert read("--config", str(file), command="sft").warm_start.sft_learning_rate == 2e-5
    assert "learning_rate is of GRPO: sft reads sft_learning_rate" in capsys.readouterr().err


def test_only_the_first_rank_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    read("--model", "x", "--num_generations", "4")
    assert capsys.readouterr().err == ""


def test_counts_are_known_aliases() -> None:
    assert {*BATCH, *UPDATES} <= set(ALIASES)


PIECES = """beta optim run : : : - [ ] { } ? << &a *a 1 1e-3 on ~ ' " # | > % @ é ... --- ,
!!int !!timestamp q 2024-99-99 0b_ 0o9 1:2"""


@given(st.lists(st.sampled_from([*PIECES.split(), " ", "\n", "\n  ", "\t", "\x00"]), max_size=12).map("".join))
@hypothesis_settings(max_examples=300)
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        from_yaml(text, "x")
    except BadSettings as error:
        assert str(error).startswith("x")


@pytest.mark.parametrize(
    ("argv", "steps"),
    [
        ([], 80),
        (["--steps", "7"], 7),
        (["--max_steps", "7"], 7),
        (["--recipe", "phantom"], 200),
        (["--model", "x"], None),
    ],
)
def test_a_command_may_shorten_the_tiny_models_training(argv: list[str], steps: int | None) -> None:
    assert settings_of(TRAIN.parse_args(argv), command="train", tiny={"steps": 80}).optim.steps == steps
