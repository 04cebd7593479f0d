"""evaluate_model and the command: killed and gone on with, changed data, tables from end to end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from grpo_fast.errors import BadCheckpoint, BadData, BadSettings
from grpo_fast.evaluate import command
from grpo_fast.evaluate.progress import pace
from grpo_fast.evaluate.run import AskSettings, Result, evaluate_model
from grpo_fast.evaluate.sources import Source, open_sources

ROOT = Path(__file__).parents[2]
SETTINGS = AskSettings(prompt="no-think", max_tokens=6, batch=4, device="cpu")
KILLED = """
import os, signal, sys
from pathlib import Path
from grpo_fast.evaluate.run import AskSettings, evaluate_model
from grpo_fast.evaluate.sources import open_sources

def progress(source, done, found):
    if done >= 13:  # within the fourth batch
        os.kill(os.getpid(), signal.SIGKILL)

settings = AskSettings(prompt="no-think", max_tokens=6, batch=4, device="cpu")
sources = open_sources(["phantom:test"], max_samples=22)
evaluate_model(sys.argv[1], sources, settings, Path(sys.argv[2]), progress=progress)
"""


def phantom(count: int) -> list[Source]:
    return open_sources(["phantom:test"], max_samples=count)


def answer_file(output: Path) -> Path:
    (found,) = output.glob("*/*/answers.jsonl")
    return found


def test_killed_and_gone_on_with_is_as_never_killed(checkpoint: Path, tmp_path: Path) -> None:
    script = [sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path / "killed")]
    done = subprocess.run(script, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    file = answer_file(tmp_path / "killed")
    assert file.read_bytes().count(b"\n") == 12
    with file.open("ab") as half:  # and half a line, as a write cut in two leaves it
        half.write(b'{"place": 300, "id": "phan')
    seen: list[tuple[int, int]] = []
    sources, name = phantom(22), str(checkpoint)
    resumed = evaluate_model(
        name, sources, SETTINGS, tmp_path / "killed", progress=lambda source, *counts: seen.append(counts)
    )
    assert seen[0] == (12, 12) and seen[-1] == (22, 12)
    whole = evaluate_model(name, sources, SETTINGS, tmp_path / "whole")
    assert file.read_bytes() == answer_file(tmp_path / "whole").read_bytes()
    assert resumed == whole and len(whole.answers["phantom-test"]) == 22
    assert 0 < sum(answer.strict for answer in whole.answers["phantom-test"]) < 22


def test_a_finished_run_loads_no_weights(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate_model(str(checkpoint), phantom(5), SETTINGS, tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("grpo_fast.evaluate.run.load_engine", fail)
    assert evaluate_model(str(checkpoint), phantom(5), SETTINGS, tmp_path) == first


def test_a_changed_setting_starts_anew_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def answered(max_tokens: int, batch: int) -> Result:
        settings = AskSettings(prompt="no-think", max_tokens=max_tokens, batch=batch, device="cpu")
        return evaluate_model(str(checkpoint), phantom(6), settings, tmp_path, say=said.append)

    short = answered(3, 2)
    assert answered(3, 5) == short and said == []  # the batch moves no answer
    longer = answered(6, 2)
    assert len(said) == 1 and "max_tokens was 3, is 6: starting anew" in said[0]
    assert all(answer.tokens <= 3 for answer in short.answers["phantom-test"])
    assert any(answer.tokens > 3 for answer in longer.answers["phantom-test"])


def test_other_weights_start_anew(checkpoint: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    said: list[str] = []
    first = evaluate_model(str(model), phantom(8), SETTINGS, tmp_path / "out", say=said.append)
    shutil.copyfile(other_checkpoint / "model.safetensors", model / "model.safetensors")
    second = evaluate_model(str(model), phantom(8), SETTINGS, tmp_path / "out", say=said.append)
    assert len(said) == 1 and "weights has changed: starting anew" in said[0]
    assert first != second


def write_questions(folder: Path, count: int = 7) -> Path:
    for number in range(count):
        Image.new("RGB", (56, 56), (30 * number, 90, 10)).save(folder / f"{number}.png")
    lines = [
        {
            "id": "twice" if number in (1, 2) else f"q{number}", "image": f"{number}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nNumber {number}? A) one, B) two, C) three, D) four"},
                {"from": "gpt", "value": "ABCD"[number % 4]},
            ],
        }
        for number in range(count)
    ]  # fmt: skip
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_what_cannot_be_asked_is_named_and_tried_again(checkpoint: Path, tmp_path: Path) -> None:
    file = write_questions(tmp_path)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3].replace('"D"', '"E"'), *lines[4:]]) + "\n")
    (tmp_path / "5.png").write_bytes(b"no picture")

    def answered() -> Result:
        return evaluate_model(str(checkpoint), open_sources([str(file)]), SETTINGS, tmp_path / "out", say=said.append)

    said: list[str] = []
    first = answered().answers["questions"]
    assert [bool(answer.skipped) for answer in first] == [False, False, False, True, False, True, False]
    assert "gold answer 'E' cannot be read" in first[3].skipped and "5.png" in first[5].skipped
    assert answered().answers["questions"] == first and said == []
    Image.new("RGB", (56, 56), "red").save(tmp_path / "5.png")
    again = answered().answers["questions"]
    assert "the data have changed: going on from question 5" in said[0]
    assert again[:5] == first[:5] and not again[5].skipped and again[3].skipped
    file.write_text("\n".join([lines[0].replace("one", "won"), *lines[1:]]) + "\n")
    assert not answered().answers["questions"][3].skipped
    assert "the data have changed: going on from question 1" in said[1]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--device", "cpu", "--max-tokens", "6", *arguments]))


def test_two_models_end_to_end(
    checkpoint: Path, other_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_questions(tmp_path), tmp_path / "out"
    training = tmp_path / "train.jsonl"
    training.write_text("".join(file.read_text().splitlines(keepends=True)[4:6]))
    asked = ["--model", str(checkpoint), str(other_checkpoint), "--data", str(file), "phantom:test"]
    asked += ["--train-data", str(training), "--max-samples", "12", "--output", str(output)]
    assert run(*asked, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in report["rows"]} == {"first", "second"}
    assert {row["source"] for row in report["rows"]} == {"questions", "phantom-test", "all"}
    assert [leak["id"] for leak in report["in_training_data"]["questions"]] == ["q4", "q5"]
    assert report["duplicate_ids"] == {"questions": {"twice": 2}, "phantom-test": {}}
    assert {one["n"] for one in report["comparisons"]} == {7, 12, 19}
    for row in report["rows"]:
        lines = [
            json.loads(line)
            for path in output.glob(f"{row['model']}-*/{row['source'].replace('all', '*')}/answers.jsonl")
            for line in path.read_text().splitlines()
        ]
        if row["facet"] == "overall":
            assert (row["n"], row["correct"]) == (len(lines), sum(line["strict"] for line in lines))
        elif row["facet"] == "modality" and row["group"] != "macro":
            members = [line for line in lines if line["modality"] == row["group"]]
            assert (row["n"], row["correct"]) == (len(members), sum(line["strict"] for line in members))
    assert json.loads((output / "results.json").read_text()) == report
    assert run(*asked) == 0
    shown = capsys.readouterr().out
    assert "q4, q5" in shown and "twice" in shown and "results.md" in shown
    assert "2 questions are in the training data: q4, q5" in (output / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (["--data", "slake:{tmp}"], BadData, r"slake:.*: no test.json; expected there"),
        (["--data", "{tmp}/none.jsonl"], BadData, "none.jsonl"),
        (["--prompt", "thinks"], BadSettings, "think"),
        (
            ["--data", "phantom", "phantom:test", "x", "--image-folders", "{tmp}", "{tmp}"],
            BadSettings,
            "2 image folders",
        ),
        (["--batch", "0"], BadSettings, "batch must be at least 1"),
        (["--max-samples", "-1"], BadSettings, "--max-samples must be at least 0"),
        (["--seed", "-1", "--max-samples", "2"], BadSettings, "--seed must be at least 0, got -1"),
        (["--device", "gpu"], BadSettings, "device gpu cannot be used: "),
        (["--device", "cuda:99"], BadSettings, "device cuda:99 cannot be used: torch finds .* CUDA devices"),
        (["--model", "{tmp}", "{tmp}"], BadSettings, "twice"),
        (["--model", "{tmp}"], BadCheckpoint, "{tmp}"),
    ],
)
def test_mistakes_are_named(
    checkpoint: Path, tmp_path: Path, arguments: list[str], error: type[Exception], complaint: str
) -> None:
    given = [one.format(tmp=tmp_path) for one in arguments]
    model = [] if "--model" in given else ["--model", str(checkpoint)]
    with pytest.raises(error, match=complaint.format(tmp=tmp_path)):
        run(*model, *given, "--output", str(tmp_path / "out"))


def test_sources() -> None:
    two = open_sources(["phantom:test", "phantom:test"], max_samples=9, seed=1)
    assert [source.name for source in two] == ["phantom-test", "phantom-test-2"]
    assert two[0].places == two[1].places == tuple(sorted(two[0].places)) and len(set(two[0].places)) == 9
    assert open_sources(["phantom:test"], max_samples=9, seed=2)[0].places != two[0].places
    assert open_sources(["phantom:test"])[0].places == tuple(range(512))


def test_pace() -> None:
    assert pace(0, 10, 1.0) == ""
    assert pace(20, 100, 10.0) == "2.0 a second, 0:50 left"
    assert pace(10, 40000, 10.0) == "1.0 a second, 11:06:40 left"
