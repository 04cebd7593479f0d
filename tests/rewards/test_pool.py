"""Slow rewards in processes: same numbers, killed when they hang, named when they die."""

import logging
import multiprocessing
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from rewards_lab import TRL_FILE, sample, tagged, write

from grpo_fast.errors import BadReward, RunFailed
from grpo_fast.rewards import RewardSet

TROUBLE = """
import os, time

def compute_score(reward_input):
    if "hang" in reward_input["response"]:
        time.sleep(600)
    if "die" in reward_input["response"]:
        os._exit(7)
    return {"overall": float(len(reward_input["response"]))}

def batch(completions, **kwargs):
    texts = [c[0]["content"] for c in completions]
    while any("hang" in text for text in texts):
        pass
    return [float("nan") if text == "nan" else 1 / (text != "divide") for text in texts]

def length(text):
    return float(len(text))

def by_executor(completions, **kwargs):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool:
        return list(pool.map(length, [c[0]["content"] for c in completions]))

def with_child(completions, **kwargs):
    import multiprocessing
    from pathlib import Path

    text = completions[0][0]["content"]
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600.0 if "hang" in text else 0.0,))
    child.start()
    Path(text.removeprefix("hang ")).write_text(str(child.pid))
    child.join()
    return [float(child.exitcode == 0)]
"""


def test_trouble_in_a_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One pool through all of it, since a process takes seconds to start."""
    file = write(tmp_path, TROUBLE)
    with RewardSet.of([f"{file}:compute_score", "format", f"{file}:batch"], workers=2, timeout=3.0) as rewards:
        with caplog.at_level(logging.WARNING):
            first, second = rewards([sample("a:1"), sample("b:2")], [("x", "hang", "xx"), (tagged("C"), "xyz", "")])
        assert first["compute_score"].tolist() == [1.0, 0.0, 2.0]
        assert first["batch"].tolist() == [0.0, 0.0, 0.0]
        assert second["compute_score"].tolist() == [float(len(tagged("C"))), 3.0, 0.0]
        assert second["batch"].tolist() == [1.0, 1.0, 1.0]
        assert second["format"].tolist() == [1.0, 0.0, 0.0]
        assert rewards.timeouts == {"compute_score": 1, "batch": 3}
        assert "compute_score took too long and was given up: sample a:1, completion 2" in caplog.text
        assert "batch took too long and was given up: sample a:1, 3 completions" in caplog.text

        with pytest.raises(RunFailed, match=r"batch returned nan.*sample train.jsonl:7, completion 2: 'nan'"):
            rewards([sample()], [("x", "nan")])
        with pytest.raises(RunFailed, match=r"ZeroDivisionError.*rewards.py, line 15.*completion 3: 'divide'"):
            rewards([sample()], [("x", "y", "divide")])
        with pytest.raises(BadReward, match=r"batch: sample c:3 cannot be handed to another process.*reward_workers"):
            rewards([sample("c:3", images=(lambda: Image.new("RGB", (8, 8)),))], [("x",)])
        with pytest.raises(
            RunFailed, match=r"compute_score ended its process \(exit code 7\) with sample train.jsonl:7"
        ):
            rewards([sample()], [("die",)])

        (row,) = rewards([sample()], [("still", "at", "work")])
        assert row["compute_score"].tolist() == [5.0, 2.0, 4.0]
        assert row["batch"].tolist() == [1.0, 1.0, 1.0]
    assert not [child for child in multiprocessing.active_children() if child.name == "grpo-fast reward"]


def test_a_reward_may_start_processes_and_they_end_with_it(tmp_path: Path) -> None:
    """As graders do that guard against formulas without an end."""
    file, note = write(tmp_path, TROUBLE), tmp_path / "pid"
    with RewardSet.of([f"{file}:by_executor"], workers=1) as rewards:
        assert rewards([sample()], [("x", "xyz")])[0]["by_executor"].tolist() == [1.0, 3.0]
    with RewardSet.of([f"{file}:with_child"], workers=1, timeout=3.0) as rewards:
        quick, hanging = rewards([sample("a:1"), sample("b:2")], [(str(note),), (f"hang {note}",)])
        assert quick["with_child"].tolist() == [1.0] and hanging["with_child"].tolist() == [0.0]
        assert rewards.timeouts == {"with_child": 1}
    ended = time.monotonic() + 10
    while alive(int(note.read_text())):
        assert time.monotonic() < ended
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_give_the_numbers_of_this_one(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    file = write(tmp_path, TRL_FILE)
    specs = ["accuracy", "format", "repetition", "length", f"{file}:by_modality", f"{file}:width"]
    formula = sample("m:1", "$2\\sqrt{2}$", "Area?", (partial(Image.new, "RGB", (8, 5)),), modality="ct",
                     columns={"hospital": "Basel"})  # fmt: skip
    letter = sample(
        "l:1", "C", images=(partial(Image.new, "RGB", (6, 5)),), columns={"hospital": "Bern"}, modality="mri"
    )
    groups = [(tagged("$\\sqrt{8}$"), tagged("3"), "a b c d e f " * 90), (tagged("C)"), tagged("D"), "")]
    with RewardSet.of(specs) as here, RewardSet.of(specs, workers=1) as there:
        for ours, theirs in zip(here([formula, letter], groups), there([formula, letter], groups), strict=True):
            assert {name: x.tolist() for name, x in ours.items()} == {name: x.tolist() for name, x in theirs.items()}
        assert ours["width"].tolist() == pytest.approx([6.005] * 3)


def test_letters_start_no_process() -> None:
    with RewardSet.of(["accuracy", "format"], workers=2) as rewards:
        rewards([sample()], [(tagged("C"),)])
        assert not rewards._pool._workers
