"""Figures of a comparison against values worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest

from grpo_fast.compare.budget import budget
from grpo_fast.compare.charts import draw
from grpo_fast.compare.output import comparing
from grpo_fast.compare.plan import STAGES, Seed
from grpo_fast.compare.result import SEEN, UNSEEN, differences, lengths, lines, parts, verdict
from grpo_fast.errors import BadSettings
from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.stats import wilson
from grpo_fast.matrix.jobs import HELD_OUT
from grpo_fast.train.resolved import changed
from grpo_fast.train.settings import Settings

BASELINE, SFT, RL = STAGES
LEFT_OUT = {0: [("ct", "a")], 1: [("mri", "a")]}
CELLS = [("ct", "a"), ("ct", "b"), ("mri", "a"), ("mri", "b")]
# (seed, stage): right or wrong on five questions of each cell, in CELLS' order
RIGHT = {
    (0, BASELINE): (1, 2, 1, 2), (0, SFT): (1, 4, 4, 4), (0, RL): (4, 5, 4, 5),
    (1, BASELINE): (2, 2, 1, 1), (1, SFT): (4, 4, 2, 4), (1, RL): (5, 4, 4, 5),
}  # fmt: skip


def answers() -> dict[tuple[int, str], dict[str, list[Answer]]]:
    found = {}
    for key, right in RIGHT.items():
        own = [
            Answer(
                place=5 * cell + number, id=f"{cell}-{number}", question="?", gold="A", modality=modality,
                question_type=question_type, strict=number < right[cell], lenient=True,
                completion=" ".join(["word"] * (1 + number)), finished=True,
            )
            for cell, (modality, question_type) in enumerate(CELLS) for number in range(5)
        ]  # fmt: skip
        found[key] = {HELD_OUT: own}
    return found


def test_shares_and_their_spread() -> None:
    found = {(line.part, line.group, line.stage): line for line in lines(parts(answers(), LEFT_OUT))}
    rl = found[HELD_OUT, "", RL]
    assert (rl.n, rl.correct, rl.accuracy, rl.seeds) == (40, 36, 0.9, {0: 0.9, 1: 0.9})
    assert (rl.low, rl.high) == wilson(36, 40) and rl.mean == pytest.approx(0.9) and rl.spread == pytest.approx(0)
    sft = found[UNSEEN, "", SFT]  # ct × a of seed 0, mri × a of seed 1
    assert (sft.n, sft.correct, sft.seeds) == (10, 3, {0: 0.2, 1: 0.4})
    assert sft.spread == pytest.approx(stdev([0.2, 0.4])) and sft.mean == pytest.approx(0.3)
    assert found[SEEN, "", SFT].correct == 12 + 12 and found[SEEN, "", SFT].n == 30
    assert found[HELD_OUT, "ct", BASELINE].correct == 7 and found[HELD_OUT, "b", BASELINE].seeds == {0: 0.4, 1: 0.3}


def test_what_could_not_be_asked_is_in_no_share() -> None:
    found = answers()
    own = found[0, RL][HELD_OUT]
    assert own[0].strict
    own[0] = replace(own[0], skipped="no picture")
    (rl,) = (one for one in lines(parts(found, LEFT_OUT)) if (one.part, one.group, one.stage) == (HELD_OUT, "", RL))
    assert (rl.n, rl.correct, rl.seeds) == (39, 35, {0: 17 / 19, 1: 0.9})


def test_differences_are_paired_and_later_minus_earlier() -> None:
    compared = differences(parts(answers(), LEFT_OUT), seed=0)[UNSEEN]
    strict = {(one.source, one.a, one.b): one.paired for one in compared if one.extraction == "strict"}
    whole = strict["all", RL, SFT]
    assert (whole.difference, whole.n) == (pytest.approx(0.5), 10) and 0 < whole.low < 0.5 < whole.high
    assert strict["seed 0", RL, SFT].difference == pytest.approx(0.6) and strict["seed 0", RL, SFT].n == 5
    assert strict["all", SFT, BASELINE].difference == pytest.approx(0.1)
    assert all(one.paired.difference == 0 for one in compared if one.extraction == "lenient")


def test_the_verdict_says_what_is() -> None:
    own = parts(answers(), LEFT_OUT)
    unseen = next(text for text in verdict(lines(own), differences(own, 0)) if text.startswith(UNSEEN))
    assert unseen.startswith(f"{UNSEEN}: +RL 80.0 % > +SFT 30.0 % > baseline 20.0 %. ")
    assert "+RL − +SFT +50.0 points [" in unseen and "+SFT − baseline +10.0 points" in unseen
    assert "+SFT − baseline" in unseen and "not told apart" in unseen.partition("+SFT − baseline")[2].partition(";")[0]
    swapped = {(seed, {RL: SFT, SFT: RL}.get(stage, stage)): given for (seed, stage), given in answers().items()}
    own = parts(swapped, LEFT_OUT)
    unseen = next(text for text in verdict(lines(own), differences(own, 0)) if text.startswith(UNSEEN))
    assert unseen.startswith(f"{UNSEEN}: +SFT 80.0 % > +RL 30.0 %") and "+RL − +SFT -50.0 points" in unseen


def test_lengths_count_words() -> None:
    found = lengths(parts(answers(), LEFT_OUT)[HELD_OUT])
    assert found[RL]["all"] == {1: 8, 2: 8, 3: 8, 4: 8, 5: 8}
    assert found[SFT]["correct"] == {1: 8, 2: 7, 3: 6, 4: 6}


def test_without_combinations_and_with_one_seed() -> None:
    one = {key: given for key, given in answers().items() if key[0] == 0}
    own = parts(one, {0: []})
    assert list(own) == [HELD_OUT] and lines(own)[0].spread is None
    assert verdict(lines(own), differences(own, 0))[0].startswith(
        "held-out: +RL 90.0 % > +SFT 65.0 % > baseline 30.0 %"
    )


def test_budget() -> None:
    settings = changed(Settings(), prompts_per_step=16, group_size=8, minibatches=2, updates_per_rollout=3)
    equal = budget(settings, 60, 960, "questions")
    assert (equal.updates, equal.sft_batch) == (120, 8) and equal.updates * equal.sft_batch == 960
    said = "\n".join(equal.lines())
    assert "120 optimizer updates" in said and "120 updates × 8 questions = 960" in said and "= 7680" in said
    assert budget(settings, 60, 960, "completions").sft_batch == 64
    for wrong, text in (({"minibatches": 3}, "no multiple of minibatches"), ({"filter_groups": True}, "filter_groups")):
        with pytest.raises(BadSettings, match=text):
            budget(changed(settings, **wrong), 60, 960, "questions")
    with pytest.raises(BadSettings, match="steps is 0"):
        budget(settings, 0, 960, "questions")


def test_files_and_charts(tmp_path: Path) -> None:
    from PIL import Image

    held = budget(Settings(), 4, 64, "questions")
    seeds = [Seed(number=number, left_out=LEFT_OUT[number], budget=held, jobs={}) for number in (0, 1)]
    own = comparing(seeds, parts(answers(), LEFT_OUT), {"model": "tiny"}, 0)
    names = [file.name for file in own.write(tmp_path)]
    assert {"comparison.json", "comparison.csv", "comparison.md", "results.json"} <= {*names}
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["left_out"] == {"0": [["ct", "a"]], "1": [["mri", "a"]]} and len(found["verdict"]) == 3
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    unseen = [row for row in rows if (row["source"], row["facet"]) == (UNSEEN, "overall")]
    assert [(row["model"], row["correct"]) for row in unseen] == [(BASELINE, 2), (SFT, 3), (RL, 8)]
    table = (tmp_path / "comparison.md").read_text()
    assert "| unseen combinations | 20.0 [5.7, 51.0] ±0.0 | 30.0 [10.8, 60.3] ±14.1 | 80.0 [49.0, 94.3] ±0.0 |" in table
    files = draw(own.lines, own.found, tmp_path)
    assert [file.name for file in files] == ["accuracy.svg", "accuracy.png", "lengths.svg", "lengths.png"]
    light, dark = (188, 212, 230), (31, 78, 121)
    pixels = np.asarray(Image.open(tmp_path / "lengths.png").convert("RGB")).reshape(-1, 3)
    assert all((pixels == colour).all(1).sum() > 500 for colour in (light, dark))
