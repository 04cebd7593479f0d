"""Every recipe trains the tiny model on the embedded questions, for two steps, with its own prompt and rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_fast.cli import main

SHORT = [
    "--data", "phantom", "--model", "tiny", "--max-samples", "48", "--eval-samples", "8", "--sft-steps", "2",
    "--threads", "1", "--json",
]  # fmt: skip
GRPO = ["--steps", "2", "--prompts-per-step", "2", "--group-size", "4"]


def ran(output: Path, *flags: str, command: str = "train") -> tuple[dict, list[dict], list[dict]]:
    """(summary, metrics, what was said in training)"""
    assert main([command, *flags, *SHORT, *(GRPO if command == "train" else []), "--output", str(output)]) == 0
    metrics, samples = (
        [json.loads(line) for line in (output / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "samples.jsonl")
    )
    summary = json.loads((output / "summary.json").read_text())
    return summary, metrics, [one for one in samples if one["phase"] == "grpo"]


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("phantom", {"accuracy", "format"}),
        ("med-r1", {"accuracy", "format"}),
        ("gmai-vl-r1", {"accuracy", "format", "repetition"}),
        ("gmai-vl-r1-3b", {"accuracy", "format", "repetition"}),
    ],
)
def test_grpo(name: str, rewards: set[str], tmp_path: Path) -> None:
    summary, metrics, said = ran(tmp_path / "run", "--recipe", name, "--samples-every", "1")
    trained = [line for line in metrics if line["phase"] == "grpo"]
    assert len(trained) == 2
    assert {key.partition("/")[2] for key in trained[0] if key.startswith("reward/")} == rewards
    assert set(said[0]["completions"][0]["rewards"]) == rewards
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file() and summary["steps"] == 2


@pytest.mark.parametrize("name", ["med-r1-sft", "gmai-vl-r1-sft"])
def test_sft(name: str, tmp_path: Path) -> None:
    summary, metrics, _ = ran(tmp_path / "run", "--recipe", name, command="sft")
    losses = [line["loss"] for line in metrics if line["phase"] == "sft"]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file() and summary["command"] == "sft"


@pytest.mark.parametrize(
    ("flags", "facet"),
    [
        (["--prompt", "no-think"], None),
        (["--prompt", "think-after", "--modality", "ct"], ("modality", "ct")),
        (["--question-type", "lesion-grading"], ("question_type", "lesion-grading")),
    ],
)
def test_med_r1_by_style_and_part(flags: list[str], facet: tuple[str, str] | None, tmp_path: Path) -> None:
    summary, _, said = ran(tmp_path / "run", "--recipe", "med-r1", *flags, "--samples-every", "1")
    assert summary["settings"]["data"]["prompt"] == (flags[1] if flags[0] == "--prompt" else "think")
    if facet is not None:
        assert {one[facet[0]] for one in said} == {facet[1]}
        assert list(summary[f"by_{facet[0]}"]) == [facet[1]]
