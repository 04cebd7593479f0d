"""Matrices from end to end: trained, killed and gone on with, taken as given, with a checkpoint that cannot be read."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluate.conftest import make_checkpoint
from matrix.matrix_lab import run, start

from grpo_fast.errors import BadSettings

CHOSEN = ["--modality", "ct", "mri", "--test-samples", "40"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "model")


def flags(model: Path, output: Path) -> list[str]:
    warm = ["--warm-start", "on", "--sft-steps", "1"]
    return ["--model", str(model), *warm, *CHOSEN, "--base", "--output", str(output)]


@pytest.fixture(scope="module")
def straight(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix that nothing interrupted."""
    output = tmp_path_factory.mktemp("studies") / "straight"
    assert run("matrix", *flags(model, output)) == 0
    return output


def read(folder: Path, name: str = "matrix.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_a_matrix_is_what_its_answers_say(straight: Path) -> None:
    found = read(straight)
    assert found["rows"] == ["base", "ct", "mri"] and found["columns"] == ["ct", "mri"]
    counted: dict[str, dict[str, list[bool]]] = {}
    for file in straight.glob("answers/*/held-out/answers.jsonl"):
        row = Path(json.loads(file.with_name("settings.json").read_text())["model"]).parent.name
        counted[row] = defaultdict(list)
        for line in file.read_text().splitlines():
            answer = json.loads(line)
            counted[row][answer["modality"]].append(answer["strict"])
    for row, values, n in zip(found["rows"], found["values"], found["n"], strict=True):
        assert n == [20, 20]
        assert values == [sum(counted[row][name]) / 20 for name in found["columns"]]
    every = [value for line in found["values"] for value in line]
    assert len(set(every)) > 2, "the models should differ, or this shows nothing"
    assert found["generalisation"]["score"] == pytest.approx((found["values"][1][1] + found["values"][2][0]) / 2)
    assert {"matrix.csv", "matrix.md", "matrix-cells.csv", "matrix.svg"} <= {file.name for file in straight.iterdir()}


def test_each_training_is_a_run_of_the_trainer(straight: Path) -> None:
    settings = yaml.safe_load((straight / "runs" / "ct" / "settings.yaml").read_text())
    assert settings["data"]["modality"] == ["ct"] and settings["model"]["model"] == str(straight / "runs/base/model")
    lines = [json.loads(line) for line in (straight / "runs" / "ct" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "grpo"] == [1, 2, 3]
    base = [json.loads(line) for line in (straight / "runs" / "base" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in base] == ["eval", "sft", "eval"]


def test_killed_and_gone_on_with_it_is_the_same_matrix(straight: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    timing = output / "runs" / "mri" / "timing.jsonl"
    one_by_one = [*flags(model, output), "--jobs", "1"]  # ct before mri
    with start("matrix", *one_by_one) as process:
        while process.poll() is None and not (timing.is_file() and timing.stat().st_size):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (output / "runs" / "ct" / "summary.json").is_file()
    done = (output / "runs" / "ct" / "summary.json").stat().st_mtime_ns
    assert run("matrix", *one_by_one) == 0
    assert (output / "runs" / "ct" / "summary.json").stat().st_mtime_ns == done, "ct was trained again"
    assert read(output) == read(straight)
    metrics = "runs/mri/metrics.jsonl"
    assert (output / metrics).read_bytes() == (straight / metrics).read_bytes()


def test_models_that_are_given_and_one_that_cannot_be_read(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(straight / "runs" / "mri" / "model", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    given = ["--models", f"CT={straight / 'runs' / 'ct' / 'model'}", f"mri={broken}", *CHOSEN]
    given += ["--jobs", "1", "--output", str(tmp_path / "given")]
    assert run("matrix", *given, "--skip-unreadable", "--json") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["matrix"]
    assert f"cannot be read: mri: {broken}" in told.err
    assert found == read(tmp_path / "given") and not (tmp_path / "given" / "runs").exists()
    ct = read(straight)["values"][1]
    assert found["values"] == [ct, [None, None]] and found["n"][1] == [0, 0]
    assert found["overall"]["columns"] == {"ct": ct[0], "mri": ct[1]}
    assert found["empty_cells"] == 2 and "broken" in found["empty"]["mri"]
    assert found["generalisation"]["score"] == ct[1]


def test_other_settings_need_another_folder(straight: Path, model: Path) -> None:
    with pytest.raises(BadSettings, match="steps was 3, is 4"):
        run("matrix", *flags(model, straight), "--steps", "4")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--modality", "ct", "mir"], "modality mir .did you mean mri"),
        (["--modality", "ct"], "a matrix needs two"),
        (["--models", "ct"], "NAME=DIR"),
        (["--models", "ct=a", "CT=b"], "names ct twice"),
        (["--models", "ct=a", "--think-minus-no-think"], "leave --models out"),
        (["--models", "ct=a", "--base"], "name it with --model"),
        (["--test-samples", "-1"], "at least 0"),
        (["--modality", "ct", "mri", "--jobs", "-1"], "--jobs must be at least 1"),
    ],
)
def test_mistakes_are_named(given: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=said):
        run("matrix", *given, "--output", str(tmp_path / "study"))
