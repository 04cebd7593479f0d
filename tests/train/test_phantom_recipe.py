"""The embedded default, cut short: the warm start stops where it should, and GRPO goes on from there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from grpo_fast.cli import main


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty of its steps, on the recipe's own settings but for the number of steps and of questions asked."""
    output = tmp_path_factory.mktemp("runs") / "begun"
    assert main(["train", "--output", str(output), "--steps", "20", "--eval-samples", "160", "--json"]) == 0
    return output


def test_the_default_begins_to_learn(begun: Path) -> None:
    lines = [json.loads(line) for line in (begun / "metrics.jsonl").read_text().splitlines()]
    accuracy = json.loads((begun / "summary.json").read_text())["accuracy"]
    assert accuracy["start"] == 0.0 and 0.35 < accuracy["sft"] <= 0.65
    supervised = [line["loss"] for line in lines if line["phase"] == "sft"]
    assert 30 < len(supervised) < 200 and supervised[-1] < 0.2 * supervised[0]
    rewards = [line["reward"] for line in lines if line["phase"] == "grpo"]
    assert sum(rewards[-10:]) > sum(rewards[:10])


def asking(summary: dict[str, Any]) -> list[str]:
    return shlex.split(next(text for text in summary["next"].values() if " eval " in text))


def test_what_to_type_next_asks_as_the_run_did(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model as it stands; its accuracy on the same questions, by the command that the run names."""
    output = tmp_path / "run"
    flags = [
        "--model", str(begun / "model"), "--prompt", "plain", "--max-completion-length", "24", "--data", "phantom",
        "--max-samples", "64", "--eval-samples", "0", "--steps", "0", "--json",
    ]  # fmt: skip
    assert main(["train", "--output", str(output), *flags]) == 0
    summary = json.loads(capsys.readouterr().out)
    words = asking(summary)
    default = asking(json.loads((begun / "summary.json").read_text()))
    assert words == [word.replace(str(begun), str(output)) for word in default]
    assert main([*words[1:], "--output", str(tmp_path / "evaluation"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (overall,) = (row for row in rows if row["facet"] == "overall")
    assert overall["n"] == summary["asked"] == 512 and summary["accuracy"]["start"] > 0.3
    assert overall["accuracy"] == pytest.approx(summary["accuracy"]["start"], abs=1e-9)
