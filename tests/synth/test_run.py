"""`grpo-fast synth` as it is typed, with a server that fails and with a model in this process."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synth.faulty_server import FaultyServer, chain, disconnect, pictures_of, raw, status

from grpo_fast.data import open_data
from grpo_fast.data.phantom import write
from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.rewards.answers import is_correct
from grpo_fast.rewards.format import follows_format
from grpo_fast.synth import command
from grpo_fast.synth.settings import ChainSettings

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789abcdefABCDEF"
LENIENT = ["--max-repetition", "1", "--min-words", "1", "--max-similarity", "1"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write(folder, train=24, test=8, size=56)["train"]


def run(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(one) for one in arguments]))


def ask(server: FaultyServer, questions: Path, output: Path, *more: Any) -> int:
    given = ["--data", questions, "--output", output, "--server", server.url, "--server-model", "m", "--k", 4]
    return run(*given, *LENIENT, *more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chains(output: Path) -> dict[int, Any]:
    return {line["place"]: line for line in lines(output / "chains.jsonl")}


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text())


def test_from_questions_to_the_two_files(server: FaultyServer, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ask(server, questions, out, "--image-root", questions.parent, "--keep", 2, "--name", "mine") == 0
    source = open_data([str(questions)])
    kinds = {"rl": lines(out / "mine_rl.jsonl"), "sft": lines(out / "mine_sft.jsonl")}
    # What the server says is known, so what has to be kept is too.
    expected: dict[str, list[str]] = {}
    for _, _, _, body in server.requests:
        (sample,) = (s for n, s in enumerate(source) if body["seed"] - ChainSettings().seed_of(n) in range(4))
        if is_correct(chain(body), str(sample.answer)):
            expected.setdefault(sample.id, []).append(chain(body))
    assert {line["id"] for line in kinds["rl"]} == expected.keys() and 8 < len(expected) < 24
    for line in kinds["sft"]:
        assert list(line)[:2] == ["image", "conversations"]
        id, _, _ = line["id"].partition("#")
        human, gpt = line["conversations"]
        assert human["from"] == "human" and human["value"].startswith("<image>\n") and gpt["from"] == "gpt"
        assert gpt["value"] in expected[id] and follows_format(gpt["value"])
    counts = [sum(line["id"].startswith(id + "#") for line in kinds["sft"]) for id in expected]
    assert counts == [min(2, len(texts)) for texts in expected.values()] and max(counts) == 2
    # Both files are read as what they are, their pictures found from the image root.
    by_id = {sample.id: sample for sample in source}
    for kind in kinds:
        read = open_data([str(out / f"mine_{kind}.jsonl")], image_folders=[str(questions.parent)])
        for sample in read:
            first = by_id[sample.id.partition("#")[0]]
            assert sample.messages == first.messages and sample.answer == first.answer
            assert np.array_equal(np.asarray(sample.images[0]()), np.asarray(first.images[0]()))
            assert sample.meta["modality"] == first.meta["modality"]
    told = report(out)
    assert told["all"]["chains"] == 96 and told["all"]["kept"] == len(kinds["sft"]) == sum(counts)
    assert told["all"]["accepted"] == sum(map(len, expected.values()))
    assert sum(one["chains"] for one in told["by_modality"].values()) == 96
    for one in [told["all"], *told["by_modality"].values()]:
        assert sum(one["refused"].values()) + one["surplus"] + one["kept"] == one["chains"]


def test_what_the_server_is_asked(server: FaultyServer, questions: Path, tmp_path: Path) -> None:
    ask(server, questions, tmp_path, "--max-samples", 3, "--max-pixels", 400, "--temperature", 0.7, "--max-tokens", 99)
    bodies = [body for _, _, _, body in server.requests]
    assert len(bodies) == 12 and len({body["seed"] for body in bodies}) == 12
    for body in bodies:
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0.7, 99, "m")
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
        (picture,) = pictures_of(body)
        assert picture.mode == "RGB" and picture.size == (20, 20)
    server.requests.clear()
    ask(server, questions, tmp_path / "full", "--max-samples", 1)
    place = next(iter(chains(tmp_path / "full")))
    shown = np.asarray(pictures_of(server.requests[0][3])[0])
    assert np.array_equal(shown, np.asarray(open_data([str(questions)])[place].images[0]().convert("RGB")))


def test_a_server_that_fails_midway(
    server: FaultyServer, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    more = ["--key-env", "MY_KEY", "--retries", 1, "--concurrency", 3]
    ask(server, questions, tmp_path / "whole", *more)
    server.requests.clear()
    monkeypatch.setattr("grpo_fast.synth.client.LONGEST_BACKOFF", 0.01)
    server.fault = lambda number, body: status(500, f"out of memory, {KEY}") if number >= 40 else None
    with pytest.raises(
        RunFailed, match=r"out of memory.* of 24 questions are kept .*: the same command goes on"
    ) as error:
        ask(server, questions, tmp_path / "cut", *more)
    kept = chains(tmp_path / "cut")
    assert 6 <= len(kept) <= 10 and f"the chains of {len(kept)} of 24" in str(error.value)
    assert not (tmp_path / "cut" / "synth_sft.jsonl").exists()
    server.requests.clear()
    faults = [status(429, Retry_After="0.05"), raw(b"{"), disconnect]  # and goes on through smaller ones
    server.fault = lambda number, body: faults[number % 3] if number % 20 < 3 and number < 60 else None
    ask(server, questions, tmp_path / "cut", *more, "--retries", 9)
    assert len(server.requests) - 9 == (24 - len(kept)) * 4  # nothing twice
    assert chains(tmp_path / "cut") == chains(tmp_path / "whole")
    for name in ("synth_rl.jsonl", "synth_sft.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers, _ in server.requests)
    assert KEY not in str(error.value)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


KILLED = """
import argparse, sys
from grpo_fast.synth import command
from grpo_fast.synth.settings import ChainSettings
parser = argparse.ArgumentParser()
command.add_arguments(parser)
command.run(parser.parse_args(sys.argv[1:]))
"""


def test_killed_and_gone_on_with(server: FaultyServer, questions: Path, tmp_path: Path) -> None:
    given = ["--data", questions, "--output", tmp_path, "--server", server.url, "--server-model", "m", "--k", 4]
    given = [str(one) for one in [*given, *LENIENT, "--concurrency", 4]]
    server.fault = lambda number, body: (lambda handler: server.ended.wait(30)) if number >= 38 else None
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *given], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.requests) < 42 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    while len(chains(tmp_path)) < 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert len(chains(tmp_path)) == 9  # of 38 answers: all but the question in flight
    server.fault = lambda number, body: None
    server.requests.clear()
    assert run(*given) == 0
    assert len(server.requests) == 15 * 4 and len(chains(tmp_path)) == 24


def test_other_filters_ask_nothing_anew(server: FaultyServer, questions: Path, tmp_path: Path) -> None:
    ask(server, questions, tmp_path)
    before = report(tmp_path)["all"]
    server.requests.clear()
    ask(server, questions, tmp_path, "--min-words", 17)
    assert not server.requests
    after = report(tmp_path)["all"]
    assert after["kept"] == 0 and after["refused"]["too short"] == before["accepted"] > 0
    assert (tmp_path / "synth_sft.jsonl").read_text() == (tmp_path / "synth_rl.jsonl").read_text() == ""
    ask(server, questions, tmp_path, "--min-words", 17, "--every-question")
    assert len(lines(tmp_path / "synth_rl.jsonl")) == 24
    with pytest.raises(BadSettings, match=r"temperature was 1.0, is 0.5"):
        ask(server, questions, tmp_path, "--temperature", 0.5)
    ask(server, questions, tmp_path, "--temperature", 0.5, "--fresh", "--max-samples", 2)
    assert len(server.requests) == 8 and len(chains(tmp_path)) == 2


def test_questions_that_cannot_be_asked_are_named(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write(tmp_path / "data", train=6, test=1, size=56)["train"]
    told = questions.read_text().splitlines()
    spoilt = json.loads(told[1])
    spoilt["conversations"][1]["value"] = "<answer>E</answer>"
    questions.write_text("\n".join([told[0], json.dumps(spoilt), "{", *told[3:]]) + "\n")
    (questions.parent / "images/train/000003.png").write_bytes(b"no picture")
    refused = json.loads(told[4])["conversations"][0]["value"].removeprefix("<image>")
    server.fault = lambda number, body: status(400, "unsafe") if refused in json.dumps(body) else None
    assert ask(server, questions, tmp_path / "out", "--every-question") == 0
    skipped = report(tmp_path / "out")["skipped"]
    names = {place.rpartition(":")[2]: why for place, why in skipped.items()}
    assert names.keys() == {"2", "3", "4", "5"} and len(lines(tmp_path / "out" / "synth_rl.jsonl")) == 2
    assert "'E'" in names["2"] and "JSON" in names["3"] and "000003.png" in names["4"]
    assert names["5"] == "refused by the server: HTTP 400: unsafe"
    assert "4 questions were left out" in capsys.readouterr().out
    server.fault = lambda number, body: None  # what was refused is asked again
    ask(server, questions, tmp_path / "out")
    assert len(chains(tmp_path / "out")) == 3


def test_a_server_that_refuses_everything_is_asked_no_more(
    server: FaultyServer, questions: Path, tmp_path: Path
) -> None:
    server.fault = lambda number, body: status(400, "no such model")
    with pytest.raises(RunFailed, match=r"refused 3 questions in a row.*no such model.*--server-model 'm'"):
        ask(server, questions, tmp_path, "--concurrency", 1)
    assert len(server.requests) <= 16


def test_a_server_that_wants_a_key_is_asked_no_more(server: FaultyServer, questions: Path, tmp_path: Path) -> None:
    server.fault = lambda number, body: status(401)
    with pytest.raises(RunFailed, match="it wants a key"):
        ask(server, questions, tmp_path, "--concurrency", 2)
    assert len(server.requests) <= 2


def test_a_server_that_does_not_sample_is_noticed(
    server: FaultyServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda number, body: lambda handler: handler.answer("<think>it is so</think><answer>A</answer>")
    ask(server, questions, tmp_path)
    found = report(tmp_path)
    assert found["questions_with_equal_chains"] == 24 and "24 questions have the same chain" in capsys.readouterr().out
    assert found["all"]["kept"] == found["all"]["questions_with_kept"] == found["all"]["surplus"] / 3 > 0


def test_held_out_questions_and_pictures_are_left_out(server: FaultyServer, questions: Path, tmp_path: Path) -> None:
    told = lines(questions)
    Image.open(questions.parent / told[3]["image"]).convert("RGB").save(tmp_path / "other.bmp")
    (tmp_path / "broken.png").write_bytes(b"")
    turns = [{"from": "human", "value": "Another question?"}, {"from": "gpt", "value": "yes"}]
    held = [
        {"id": told[5]["id"], "conversations": turns},
        {"id": "new", "image": "other.bmp", "conversations": turns},
        {"id": "lost", "image": "broken.png", "conversations": turns},
    ]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    out = tmp_path / "out"
    ask(server, questions, out)  # before anyone thought of it
    ask(server, questions, out, "--exclude", tmp_path / "held.jsonl", "--every-question")
    found = report(out)
    assert {place.rpartition(":")[2] for place in found["held_out"]} == {"4", "6"}
    assert f"{tmp_path / 'held.jsonl'}:2, image 0" in found["held_out"][f"{questions}:4"]
    assert "broken.png" in found["not_compared"][0]
    ids = {line["id"] for line in lines(out / "synth_rl.jsonl")}
    assert len(ids) == 22 and not ids & {told[3]["id"], told[5]["id"]}


def test_a_model_in_this_process(checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    def answered(data: Path, output: Path, batch: int = 4) -> dict[str, Any]:
        given = ["--data", data, "--model", checkpoint, "--device", "cpu", "--k", 24, "--prompt", "no-think"]
        given += ["--image-folders", questions.parent, "--max-tokens", 6, "--min-words", 0, "--batch", batch]
        assert run(*given, "--output", output) == 0
        return report(output)["all"]

    answered(questions, tmp_path / "first")
    told, agreed = lines(questions), set()
    for place, line in chains(tmp_path / "first").items():  # whatever it says is right from now on
        said = [one["text"] for one in line["chains"] if follows_format(one["text"], "no-think") and one["finished"]]
        if said:
            agreed.add(place)
            told[place]["conversations"][1]["value"] = said[0]
    data = tmp_path / "agreed.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in told))
    whole = answered(data, tmp_path / "whole")
    assert whole["chains"] == 24 * 24 and whole["kept"] == len(agreed) >= 2 and whole["refused"]["wrong"] > 10
    for place, line in chains(tmp_path / "whole").items():
        assert line["chains"] == chains(tmp_path / "first")[place]["chains"]
    # Cut within a line after the first batch, and gone on with in batches of another size.
    (tmp_path / "cut").mkdir()
    raw_lines = (tmp_path / "whole" / "chains.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut" / "chains.jsonl").write_bytes(b"".join(raw_lines[:4]) + raw_lines[4][:30])
    (tmp_path / "cut" / "settings.json").write_bytes((tmp_path / "whole" / "settings.json").read_bytes())
    answered(data, tmp_path / "cut", batch=5)
    for name in ("chains.jsonl", "synth_rl.jsonl", "synth_sft.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_pictures_without_a_file_get_one(server: FaultyServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--data", "phantom", "--output", out, "--server", server.url, "--server-model", "m", "--k", 2]
    run(*given, *LENIENT, "--max-samples", 3, "--every-question")
    first = open_data(["phantom"])
    for sample, place in zip(open_data([str(out / "synth_rl.jsonl")]), sorted(chains(out)), strict=True):
        shown, drawn = sample.images[0]().convert("RGB"), first[place].images[0]().convert("RGB")
        assert np.array_equal(np.asarray(shown), np.asarray(drawn))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([], "--data"),
        (["--data", "phantom", "--output", "x"], "either --model"),
        (["--data", "phantom", "--output", "x", "--model", "a", "--server", "http://b"], "either --model"),
        (["--data", "phantom", "--output", "x", "--server", "http://b"], "--server-model"),
        (["--data", "phantom", "--output", "x", "--server", "http://b", "--server-model", "m", "--key-env", "NO_SUCH"],
         "no such variable"),
        (["--data", "phantom", "--output", "x", "--server", "http://b", "--server-model", "m", "--extra", "["],
         "not valid JSON"),
        (["--data", "phantom", "--output", "x", "--model", "a", "--seed", "-1"], "--seed must lie between 0 and"),
        (["--data", "phantom", "--output", "x", "--model", "a", "--name", "a/b"], "no part of a file name"),
        (["--data", "phantom", "--output", "x", "--model", "a", "--image-root", "nowhere"], "is no folder"),
        (["--data", "phantom", "--output", "x", "--model", "a", "--prompt", "no-think"], "--min-words 0"),
    ],
)  # fmt: skip
def test_what_is_typed_wrongly(given: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSettings, match=word):
        run(*given)
    assert not any(tmp_path.iterdir())
