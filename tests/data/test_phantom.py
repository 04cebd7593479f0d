"""phantom says the same everywhere, keeps its splits apart, and cannot be answered without looking."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grpo_fast.data.phantom import COLOURS, LETTERS, MODALITIES, QUESTION_TYPES, phantom, write
from grpo_fast.data.phantom_scenes import BRIGHT, DARK, MARKED, RADII, RING, TRACERS, Scene, draw
from grpo_fast.errors import BadData
from grpo_fast.types import Sample

BLOCK = 160  # each modality × question type × letter once


def pixels(sample: Sample) -> np.ndarray:
    return np.asarray(sample.images[0]())


def question(sample: Sample) -> str:
    return sample.messages[0]["content"][1]["text"]


def options(sample: Sample) -> dict[str, str]:
    return dict(re.findall(r"([A-D])\) (.*?)(?= [A-D]\)|$)", question(sample)))


def digest(split: str, count: int, seed: int = 0) -> str:
    found = hashlib.sha256()
    for sample in phantom(split, count, seed, size=56):  # pyright: ignore[reportArgumentType]
        found.update(pixels(sample).tobytes())
        found.update(repr((sample.id, sample.messages, sample.answer, sample.meta)).encode())
    return found.hexdigest()


def test_the_same_in_another_process() -> None:
    script = "from data.test_phantom import digest; print(digest('train', 40))"
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tests)!r}); {script}"],
        capture_output=True, text=True, cwd=tests.parent, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == digest("train", 40)


def test_a_sample_is_the_same_however_it_is_reached() -> None:
    data = phantom("test", 30)
    assert data[7] == data[-23] == list(data)[7] == data[5:9][2]
    assert (pixels(data[7]) == pixels(phantom("test", 200)[7])).all()
    with pytest.raises(IndexError, match="30 questions"):
        data[30]


def test_splits_and_seeds_share_no_picture() -> None:
    sets = [phantom("train", 320, size=56), phantom("test", 320, size=56), phantom("train", 320, 1, size=56)]
    seen = [{pixels(sample).tobytes() for sample in one} for one in sets]
    assert [len(one) for one in seen] == [320, 320, 320]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_text_alone_says_nothing(split: str) -> None:
    """Whatever the wording of a question, each letter is right equally often."""
    golds: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in phantom(split, 2 * BLOCK):  # pyright: ignore[reportArgumentType]
        golds[question(sample)][sample.answer] += 1
    assert len(golds) == 2 + 4 * len(MODALITIES)
    for text, counts in golds.items():
        assert [counts[letter] for letter in LETTERS] == [counts["A"]] * 4, text


def test_a_block_holds_every_modality_and_type() -> None:
    counts = Counter((s.meta["modality"], s.meta["question_type"]) for s in phantom("train", BLOCK))
    assert counts == {(m, q): 4 for m in MODALITIES for q in QUESTION_TYPES}
    first, second = (
        [(s.meta["modality"], s.answer) for s in phantom("train", 2 * BLOCK)[i * BLOCK :][:BLOCK]] for i in (0, 1)
    )
    assert first != second  # the order tells nothing either


def test_a_demonstration_names_what_is_seen_and_answers() -> None:
    for sample in phantom("train", BLOCK):
        found = re.fullmatch(r"<think>(.+)</think><answer>([A-D])</answer>", sample.meta["response"])
        assert found and found[2] == sample.answer
        assert options(sample).keys() == set(LETTERS)
        assert options(sample)[sample.answer] in found[1]
        others = {text for letter, text in options(sample).items() if letter != sample.answer}
        assert not any(found[1].endswith(" " + text) for text in others)
        content = sample.messages[0]["content"]
        assert [part["type"] for part in content] == ["image", "text"]


def test_the_answer_is_in_the_drawing() -> None:
    """The scene behind the picture, read from the question and the gold alone."""
    for sample in phantom("train", 2 * BLOCK):
        scene: Scene = sample.images[0].scene  # pyright: ignore[reportFunctionMemberAccess]
        gold, said = LETTERS.index(sample.answer), options(sample)[sample.answer]
        assert scene.modality == sample.meta["modality"]
        match sample.meta["question_type"]:
            case "modality-recognition":
                assert said.lower() == scene.modality
            case "anatomy-identification":
                assert scene.anatomy == gold
            case "disease-diagnosis":
                assert scene.kind == gold
            case "lesion-grading":
                assert scene.kind and scene.grade == gold
            case "other-biological-attributes":
                assert scene.kind == MARKED and scene.colour == gold and said == COLOURS[gold]


def average(modality: str, **scene: Any) -> np.ndarray:
    """Over a dozen drawings, so that noise and shifts of the body cancel."""
    drawn = [draw(Scene(modality, **scene), 112, np.random.default_rng(k)) for k in range(12)]
    return np.mean(drawn, 0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_asked_for_changes_the_picture(modality: str) -> None:
    anatomies = [average(modality, anatomy=number) for number in range(4)]
    assert all(np.abs(a - b).mean() > 4 for i, a in enumerate(anatomies) for b in anatomies[:i])
    plain = anatomies[0]
    difference = np.abs(average(modality, kind=DARK, grade=2) - plain).mean(2)
    assert difference[:56, :56].mean() > 3 * difference[56:, 56:].mean()
    areas = [np.abs(average(modality, kind=MARKED, grade=grade, colour=3) - plain).sum() for grade in range(len(RADII))]
    assert all(larger > 1.2 * smaller for smaller, larger in pairwise(areas))
    dark, bright, ring = (average(modality, kind=kind, grade=3) for kind in (DARK, BRIGHT, RING))
    assert dark.mean() < plain.mean() < bright.mean()
    assert np.abs(ring - dark).mean() > 1 and np.abs(ring - bright).mean() > 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_tracers_colour_is_seen(modality: str) -> None:
    """The hue that the lesion has more of than the picture without it is that of the colour asked for."""
    plain = average(modality)
    for colour, wanted in enumerate(TRACERS):
        change = (average(modality, kind=MARKED, grade=3, colour=colour) - plain)[:56, :56].mean((0, 1))
        others = [np.subtract(wanted, other) for other in TRACERS if other != wanted]
        assert all(change @ difference > 0 for difference in others), COLOURS[colour]


@pytest.mark.parametrize("size", [1, 17, 56, 224])
def test_any_size(size: int) -> None:
    for sample in phantom("test", 20, size=size):
        image = sample.images[0]()
        assert image.size == (size, size) and image.mode == "RGB"


def test_write_gives_vlm_r1s_form(tmp_path: Path) -> None:
    files = write(tmp_path, train=12, test=5, seed=3, size=56)
    for split, count in (("train", 12), ("test", 5)):
        lines = [json.loads(line) for line in files[split].read_text(encoding="utf-8").splitlines()]
        expected = phantom(split, count, 3, 56)  # pyright: ignore[reportArgumentType]
        assert len(lines) == count
        for line, sample in zip(lines, expected, strict=True):
            human, gpt = line["conversations"]
            assert human == {"from": "human", "value": "<image>" + question(sample)}
            assert gpt == {"from": "gpt", "value": sample.meta["response"]}
            assert (line["modality"], line["question_type"]) == (sample.meta["modality"], sample.meta["question_type"])
            assert (np.asarray(Image.open(tmp_path / line["image"])) == pixels(sample)).all()


@pytest.mark.parametrize(
    "arguments", [{"split": "valid"}, {"split": "train", "count": -1}, {"split": "train", "seed": -1}]
)
def test_wrong_arguments_are_named(arguments: dict) -> None:
    with pytest.raises(BadData, match="phantom"):
        phantom(**arguments)
