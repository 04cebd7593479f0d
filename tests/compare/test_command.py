"""A comparison from end to end, and again with another seed: what is there already is not trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluate.conftest import make_checkpoint
from matrix.matrix_lab import run

from grpo_fast.data import open_data
from grpo_fast.data.phantom import write
from grpo_fast.errors import BadData, BadSettings


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("compare")
    data = write(folder / "data", train=160, test=80, size=56)
    model = make_checkpoint(folder / "model")
    files = ["--data", str(data["train"]), "--eval-data", str(data["test"]), "--max-samples", "0"]
    return ["--model", str(model), *files, "--held-out-combinations", "8", "--output", str(folder / "study")]


@pytest.fixture(scope="module")
def folder(flags: list[str]) -> Path:
    assert run("compare", *flags, "--seeds", "1") == 0
    return Path(flags[-1])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_training_has_not_seen_what_is_left_out(folder: Path) -> None:
    found = read(folder / "comparison.json")
    apart = {tuple(cell) for cell in found["left_out"]["1"]}
    assert len(apart) == 8 and len({modality for modality, _ in apart}) == 8
    for name in ("sft", "rl"):
        settings = yaml.safe_load((folder / "runs" / "seed-1" / name / "settings.yaml").read_text())
        learned = [(s.meta["modality"], s.meta["question_type"]) for s in open_data(settings["data"]["data"])]
        assert len(learned) == 6 and not apart & {*learned}
    pool = [(s.meta["modality"], s.meta["question_type"]) for s in open_data([str(folder / "data/seed-1/pool.jsonl")])]
    assert len({*pool}) == 32 and not apart & {*pool}
    asked = open_data([str(folder / "data" / "held-out.jsonl")])
    unseen = [line for line in found["lines"] if line["part"] == "unseen combinations"]
    wanted = sum((s.meta["modality"], s.meta["question_type"]) in apart for s in asked)
    assert wanted > 8 and {line["n"] for line in unseen} == {wanted}


def test_both_trainings_have_the_budget_that_is_printed(folder: Path) -> None:
    held = read(folder / "comparison.json")["budget"]["1"]
    assert (held["steps"], held["prompts"], held["questions"]) == (3, 2, 6)
    sft, rl = (yaml.safe_load((folder / f"runs/seed-1/{name}/settings.yaml").read_text()) for name in ("sft", "rl"))
    assert sft["data"]["data"] == rl["data"]["data"] and sft["model"]["model"] == rl["model"]["model"]
    assert (sft["warm_start"]["sft_steps"], sft["warm_start"]["sft_batch"]) == (3, 2)
    assert (rl["optim"]["steps"], rl["rollout"]["prompts_per_step"], rl["rollout"]["group_size"]) == (3, 2, 4)
    for name, phase in (("sft", "sft"), ("rl", "grpo")):
        lines = [json.loads(line) for line in (folder / f"runs/seed-1/{name}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["phase"] == phase] == [1, 2, 3]
        assert {line["phase"] for line in lines} == {"eval", phase}


def counted(folder: Path) -> dict[str, list[int]]:
    """Words of the correct answers, by the model that gave them."""
    found = {}
    for file in folder.glob("answers/*/held-out/answers.jsonl"):
        model = Path(read(file.with_name("settings.json"))["model"])
        answers = [json.loads(line) for line in file.read_text().splitlines()]
        found["/".join(model.parts[-3:-1])] = [len(a["completion"].split()) for a in answers if a["strict"]]
    return found


def test_the_figures_are_what_the_answers_say_and_a_seed_is_added(folder: Path, flags: list[str]) -> None:
    before, own = read(folder / "comparison.json"), counted(folder)
    whole = {
        line["stage"]: line for line in before["lines"] if (line["part"], line["facet"]) == ("held-out", "overall")
    }
    assert whole["+SFT"]["correct"] == len(own["seed-1/sft"]) and whole["+RL"]["correct"] == len(own["seed-1/rl"])
    assert {line["n"] for line in whole.values()} == {80} and any(own.values())
    words = before["lengths"]["held-out"]["+RL"]["correct"]
    assert sum(words.values()) == len(own["seed-1/rl"])
    trained = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*/summary.json")}
    assert len(trained) == 2

    assert run("compare", *flags, "--seeds", "1", "0", "--jobs", "1") == 0
    assert {file: file.stat().st_mtime_ns for file in trained} == trained
    after = read(folder / "comparison.json")
    again = {line["stage"]: line for line in after["lines"] if (line["part"], line["facet"]) == ("held-out", "overall")}
    for stage, line in whole.items():
        assert again[stage]["seeds"]["1"] == line["accuracy"] and again[stage]["n"] == 160
    assert after["left_out"]["1"] == before["left_out"]["1"] != after["left_out"]["0"]
    one = [d for d in before["differences"] if d["part"] == "held-out"]
    assert one == [d for d in after["differences"] if d["part"] == "held-out" and d["seed"] == "1"]
    assert {"accuracy.svg", "lengths.svg", "comparison.md", "results.json"} <= {file.name for file in folder.iterdir()}


def test_another_budget_needs_another_folder(folder: Path, flags: list[str]) -> None:
    with pytest.raises(BadSettings, match="equal was 'questions', is 'completions'"):
        run("compare", *flags, "--equal", "completions")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--seeds", "1", "1"], "give each once"),
        (["--held-out-combinations", "-1"], "at least 0"),
        (["--held-out-combinations", "33"], "of the 40 combinations"),
        (["--minibatches", "2", "--prompts-per-step", "3"], "no multiple of minibatches"),
    ],
)
def test_mistakes_are_named(given: list[str], said: str, flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=said):
        run("compare", *flags[:-2], "--output", str(tmp_path / "study"), *given)


def test_a_benchmark_that_is_not_there_is_named_before_any_training(flags: list[str], tmp_path: Path) -> None:
    study = tmp_path / "study"
    with pytest.raises(BadData, match=r"slake:.*there is no such folder"):
        run("compare", *flags[:-2], "--output", str(study), "--benchmarks", f"slake:{tmp_path / 'nowhere'}")
    assert not study.exists()
