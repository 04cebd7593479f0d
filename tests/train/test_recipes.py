"""Recipes that ship with the package: their values, their marks, and the tiny model under each."""

from __future__ import annotations

import argparse

import pytest

from grpo_fast.errors import BadSettings
from grpo_fast.train import recipes
from grpo_fast.train.fields import FIELDS, build
from grpo_fast.train.flags import add_arguments, from_yaml, settings_of
from grpo_fast.train.settings import Settings
from grpo_fast.train.settings_file import entries

NAMES = ["gmai-vl-r1", "gmai-vl-r1-3b", "gmai-vl-r1-sft", "med-r1", "med-r1-sft", "phantom"]


def read(*argv: str, command: str = "train") -> Settings:
    parser = argparse.ArgumentParser(prog="grpo-fast")
    add_arguments(parser, command=command)
    return settings_of(parser.parse_args(argv), command=command)


def command_of(name: str) -> str:
    return "sft" if name.endswith("-sft") else "train"


def test_the_names() -> None:
    assert recipes.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_known_and_ours_are_marked_apart(name: str) -> None:
    found = entries(recipes.text(name), name)
    assert len(found) > 5
    for entry in found.values():
        assert entry.comment.startswith(("[C]", "[F]", "[P]", "[ours]")), entry
        mark = entry.comment.split("]")[0] + "]"
        assert mark == "[ours]" or mark in recipes.introduction(name), "the mark is explained above"


def test_med_r1_is_what_its_code_says() -> None:
    settings = read("--recipe", "med-r1", "--data", "x")
    assert settings.model.model == "Qwen/Qwen2-VL-2B-Instruct" and settings.model.max_pixels == 401_408
    assert (settings.rollout.prompts_per_step, settings.rollout.group_size) == (4, 4)
    assert (settings.data.max_prompt_tokens, settings.loss.max_completion_length) == (1024, 256)
    loss = settings.loss
    assert (loss.loss_type, loss.beta, loss.use_bias_correction_kl, loss.temperature) == ("grpo", 0.04, False, 1.0)
    assert (settings.optim.learning_rate, settings.optim.epochs) == (1e-6, 1.0)
    assert settings.rewards.rewards == ["accuracy", "format"] and settings.data.prompt == "think"
    sft = read("--recipe", "med-r1-sft", "--data", "x", command="sft")
    assert (sft.warm_start.sft_learning_rate, sft.warm_start.sft_batch) == (2e-5, 64)
    assert (sft.optim.lr_schedule, sft.optim.lr_warmup) == ("cosine", 0.1)


def test_gmai_vl_r1_in_two_sizes() -> None:
    for name, model in (
        ("gmai-vl-r1", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("gmai-vl-r1-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
    ):
        settings = read("--recipe", name, "--data", "x")
        assert settings.model.model == model
        assert settings.rewards.rewards == ["accuracy", "format", "repetition"]


def test_flags_and_files_are_above_a_recipe(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("beta: 0.5\ngroup_size: 6\n")
    settings = read("--recipe", "med-r1", "--config", str(tmp_path / "mine.yaml"), "--group-size", "2",
                    "--prompt", "no-think", "--data", "x")  # fmt: skip
    assert (settings.loss.beta, settings.rollout.group_size, settings.data.prompt) == (0.5, 2, "no-think")
    assert settings.loss.loss_type == "grpo"


def test_med_r1_counts_prompts_in_a_batch() -> None:
    batch = ["--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "2", "--data", "x"]
    assert read("--recipe", "med-r1", *batch).rollout.prompts_per_step == 6
    assert read("--recipe", "med-r1", *batch, "--num_generations", "6", "--batch-unit", "completions").rollout == (
        read("--recipe", "med-r1", "--data", "x", "--prompts-per-step", "1", "--group-size", "6").rollout
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_prints_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        read("--recipe", name, "--print-settings", command=command_of(name))
    shown = capsys.readouterr()
    assert exit_.value.code == 0 and shown.err == ""
    assert shown.out.startswith(f"# {name}: ")
    expected = {one: value for one, value in from_yaml(recipes.text(name), name).items() if one in FIELDS}
    assert build(from_yaml(shown.out, "printed")) == build(expected)
    for line in shown.out.splitlines():
        if line.startswith("  ") and line.split(":")[0].strip() in expected:
            assert f"recipe {name}: [" in line


def test_a_recipe_without_data_asks_for_it() -> None:
    with pytest.raises(BadSettings, match="--recipe med-r1 takes your data: --data FILE"):
        read("--recipe", "med-r1")


def test_wrong_recipes() -> None:
    with pytest.raises(BadSettings, match="unknown recipe med-r2; did you mean med-r1"):
        read("--recipe", "med-r2")
    with pytest.raises(BadSettings, match="unknown recipe zzz; there are gmai-vl-r1, "):
        read("--recipe", "zzz")
    with pytest.raises(BadSettings, match="unknown recipe"):
        read("--recipe", "../recipes/med-r1")
    with pytest.raises(BadSettings, match=r"a recipe of `grpo-fast sft`; did you mean --recipe med-r1\?"):
        read("--recipe", "med-r1-sft")
    with pytest.raises(BadSettings, match="did you mean --recipe med-r1-sft"):
        read("--recipe", "med-r1", command="sft")


# -- the tiny model ---------------------------------------------------------------------------------------------------

PHANTOM = read()


def test_the_default_is_phantom(capsys: pytest.CaptureFixture[str]) -> None:
    assert read() == read("--recipe", "phantom") == read("--model", "tiny")
    assert capsys.readouterr().err == ""
    assert PHANTOM.model.model == "tiny" and PHANTOM.optim.learning_rate > 1e-4
    assert read("--learning-rate", "1e-6").optim.learning_rate == 1e-6
    assert read("--model", "x", "--data", "y").optim.learning_rate == 1e-6


@pytest.mark.parametrize("name", [name for name in NAMES if name != "phantom"])
def test_the_tiny_model_moves_as_phantom_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = command_of(name)
    tiny = read("--recipe", name, "--model", "tiny", "--data", "phantom", command=command)
    said = capsys.readouterr().err
    assert "the tiny model takes learning_rate, " in said and f"stay those of {name}" in said
    real = read("--recipe", name, "--data", "phantom", command=command)
    assert tiny.rewards == real.rewards and tiny.rollout == real.rollout and tiny.data.prompt == real.data.prompt
    assert (tiny.loss.loss_type, tiny.loss.beta) == (real.loss.loss_type, real.loss.beta)
    assert tiny.loss.max_completion_length == PHANTOM.loss.max_completion_length
    assert tiny.optim.learning_rate == PHANTOM.optim.learning_rate and tiny.optim.steps == PHANTOM.optim.steps
    assert tiny.warm_start.sft_learning_rate == PHANTOM.warm_start.sft_learning_rate


def test_flags_are_above_what_the_tiny_model_takes(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("model: tiny\nsft_batch: 5\n")
    settings = read("--recipe", "med-r1", "--data", "phantom", "--config", str(tmp_path / "x.yaml"),
                    "--learning-rate", "0.25", "--max-completion-length", "99")  # fmt: skip
    assert (settings.optim.learning_rate, settings.loss.max_completion_length) == (0.25, 99)
    assert settings.warm_start.sft_batch == 5 and settings.optim.steps == PHANTOM.optim.steps
    said = capsys.readouterr().err
    assert "the tiny model takes lr_floor, " in said and "sft_batch" not in said and "max_completion_length" not in said
