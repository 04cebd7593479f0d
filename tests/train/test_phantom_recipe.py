"""The embedded default, cut short: the warm start stops where it should, and GRPO goes on from there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

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


def test_what_to_type_next_asks_as_the_run_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The warm start alone; its accuracy on the same questions, by the command that the run names."""
    output = tmp_path / "run"
    flags = ["--steps", "0", "--eval-samples", "0", "--data", "phantom", "--max-samples", "1024", "--json"]
    assert main(["train", "--output", str(output), *flags]) == 0
    summary = json.loads(capsys.readouterr().out)
    words = shlex.split(next(text for text in summary["next"].values() if " eval " in text))
    assert main([*words[1:], "--output", str(tmp_path / "evaluation"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (overall,) = (row for row in rows if row["facet"] == "overall")
    assert summary["accuracy"]["sft"] > 0.3
    assert overall["accuracy"] == pytest.approx(summary["accuracy"]["sft"], abs=1e-9)
