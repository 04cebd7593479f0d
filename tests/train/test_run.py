"""Whole runs from the command line: what they leave behind, and what is lost when they are cut off (nothing)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forks import Fork
from train.small import ROOT, SMALL, start

SFT = ["--max-samples", "64", "--eval-samples", "4", "--sft-steps", "2", "--sft-batch", "8", "--threads", "1"]


def test_the_run_folder(straight: Path) -> None:
    summary = json.loads((straight / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"start", "sft", "grpo"}
    assert summary["completions_per_second"] > 0 and summary["seconds"] > 0 and "torch" in summary["versions"]
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "grpo"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["phase"] == "sft"] == [1, 2, 3, 4]
    assert {"reward", "reward/accuracy", "reward/format", "kl", "entropy", "length"} <= lines[-2].keys()
    cases = [json.loads(line) for line in (straight / "samples.jsonl").read_text().splitlines()]
    assert all((straight / picture).is_file() for case in cases for picture in case["images"])
    assert (straight / "settings.yaml").is_file() and (straight / "checkpoints").is_dir()


def test_the_model_loads_in_plain_transformers(straight: Path) -> None:
    script = (
        "import sys\nfrom transformers import AutoModelForImageTextToText, AutoTokenizer\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "assert 'grpo_fast' not in sys.modules\nprint(model.config.model_type)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(straight / "model")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "qwen2_vl"


def test_killed_anywhere_and_resumed_it_is_the_same_run(straight: Path, tmp_path: Path) -> None:
    """kill -9 at random moments of the run; every byte of the metrics and of the samples as without."""
    output = tmp_path / "killed"
    moments = random.Random(os.urandom(8))
    for _ in range(3):
        process = start(output)
        while process.poll() is None and not (output / "timing.jsonl").is_file():
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 3.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, _, err = start(output).wait()
    assert code == 0, err
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (output / name).read_bytes() == (straight / name).read_bytes(), name
    weights = "model.safetensors"
    assert (output / "model" / weights).read_bytes() == (straight / "model" / weights).read_bytes()


def test_typed_again_a_finished_run_is_as_it_was(straight: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    shutil.copytree(straight, output)
    code, _, err = start(output).wait()
    assert code == 0, err
    found, before = (json.loads((folder / "summary.json").read_text()) for folder in (output, straight))
    for name in ("accuracy", "best_accuracy", "steps", "completions_per_second", "tokens_per_second"):
        assert found[name] == before[name], name
    settings = (output / "settings.yaml").read_bytes()
    code, _, err = Fork(output, "sft", "--output", str(output), *SFT).wait()
    assert code == 2 and "holds a run of `grpo-fast train`" in err
    assert (output / "settings.yaml").read_bytes() == settings
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (output / name).read_bytes() == (straight / name).read_bytes(), name


def test_grpo_in_the_folder_of_an_sft_is_compared_with_what_that_taught(tmp_path: Path) -> None:
    flags = [
        "--warm-start",
        "off",
        "--beta",
        "0.1",
        "--mask-truncated-completions",
        "false",
        "--steps",
        "1",
        "--eval-samples",
        "4",
    ]
    assert Fork(tmp_path / "run", "sft", "--output", str(tmp_path / "run"), *SFT).wait()[0] == 0
    code, _, err = start(tmp_path / "run", *flags).wait()
    assert code == 0, err
    (step,) = (one for one in map(json.loads, lines_of(tmp_path / "run" / "metrics.jsonl")) if one["phase"] == "grpo")
    assert step["scored_tokens"] > 0 and step["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_and_goes_on(straight: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "interrupted"
    process = start(output, "--save-every", "0")
    while process.poll() is None and sum(1 for _ in lines_of(output / "timing.jsonl")) < 8:
        time.sleep(0.02)
    process.send_signal(number)
    code, out, err = process.wait()
    assert code == 1, (out, err)
    assert f"the same command with --output {output} goes on" in out and "Traceback" not in err
    code, out, err = start(output, "--save-every", "0").wait()
    assert code == 0 and "going on from" in out, err
    assert (output / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--data", "nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["--model", "no/such/folder"], 2, "no/such/folder"),
        (["--group-size", "0"], 2, "group_size must be at least 1"),
        (["--seed", "-1"], 2, "seed must be at least 0"),
        (["--rewards", "nothing.py:f"], 2, "nothing.py"),
        (["--modality", "x-ra"], 2, "x-ra"),
        (["--resume", "on"], 2, "no whole checkpoint"),
        (["--device", "cuda:7"], 2, "CUDA"),
        (["--attention", "varlen"], 2, "needs a CUDA device"),
        (["--learing-rate", "1"], 2, "--learning-rate"),
        (["--prompts-per-step", "2", "--minibatches", "4"], 2, "minibatches"),
        (["--rewards", "acuracy"], 2, "did you mean accuracy"),
        (["--top-p", "0"], 2, "top_p"),
    ],
)
def test_a_users_mistake_is_a_sentence(tmp_path: Path, flags: list[str], code: int, said: str, capsys) -> None:
    from grpo_fast.cli import main

    if torch.cuda.is_available() and {"cuda:7", "varlen"} & {*flags}:
        pytest.skip("there is a CUDA device")
    try:
        found = main(["train", "--output", str(tmp_path / "run"), *SMALL, *flags])
    except SystemExit as exit_:
        found = exit_.code
    err = capsys.readouterr().err
    assert found == code, err
    assert said in err and "Traceback" not in err
    assert not any(lines_of(tmp_path / "run" / "metrics.jsonl"))  # before the first evaluation


def test_a_model_folder_without_weights(tmp_path: Path, straight: Path, capsys) -> None:
    from grpo_fast.cli import main

    folder = tmp_path / "model"
    folder.mkdir()
    for file in (straight / "model").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    assert main(["train", "--model", str(folder), "--output", str(tmp_path / "run"), *SMALL]) == 2
    assert "weights" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_run_with_a_checkpoint(straight: Path, tmp_path: Path) -> None:
    output = tmp_path / "piped"
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_fast", "train", "--output", str(output), *SMALL, "--save-every", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    while not process.stdout.readline().startswith("GRPO 1/6"):
        pass
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 1
    assert "the output cannot be written (Broken pipe)" in said and "Traceback" not in said and "Exception" not in said
    assert list((output / "checkpoints").glob("step-*"))
    assert start(output, "--save-every", "0").wait()[0] == 0
    assert (output / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_rewards_that_are_all_alike_are_spoken_of_once(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def nothing(completions, **_):\n    return [0.25] * len(completions)\n")
    flags = ["--rewards", f"{file}:nothing", "--warm-start", "off", "--steps", "13", "--prompts-per-step", "2"]
    code, out, err = start(tmp_path / "run", *flags).wait()
    assert code == 0, err
    assert out.count("no group had two different rewards (mean 0.25)") == 1
