"""The embedded default, cut short: the warm start stops where it should, and GRPO goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

from grpo_fast.cli import main


def test_the_default_begins_to_learn(tmp_path: Path) -> None:
    """Thirty of its steps, on the recipe's own settings but for the number of steps and of questions asked."""
    output = tmp_path / "run"
    assert main(["train", "--output", str(output), "--steps", "30", "--eval-samples", "160", "--json"]) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    accuracy = json.loads((output / "summary.json").read_text())["accuracy"]
    assert accuracy["start"] == 0.0 and 0.35 < accuracy["sft"] <= 0.65
    supervised = [line["loss"] for line in lines if line["phase"] == "sft"]
    assert 30 < len(supervised) < 200 and supervised[-1] < 0.2 * supervised[0]
    rewards = [line["reward"] for line in lines if line["phase"] == "grpo"]
    assert sum(rewards[-10:]) > sum(rewards[:10])
