"""Test questions in training data: same words and same pixels, whatever the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grpo_fast.evaluate.leaks import duplicate_ids, find_leaks, normalised
from grpo_fast.evaluate.sources import Source
from grpo_fast.types import Sample


def sample(id: str, text: str, *files: Path) -> Sample:
    content = [*({"type": "image"} for _ in files), {"type": "text", "text": text}]
    loaders = tuple(lambda file=file: Image.open(file) for file in files)
    return Sample(id, [{"role": "user", "content": content}], loaders, answer="A", meta={"source": f"train:{id}"})


def source(name: str, samples: list[Sample]) -> Source:
    return Source(name, name, samples, tuple(range(len(samples))))


def picture(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(path)
    return path


def test_same_words_and_same_pixels(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "1.png", 1), picture(tmp_path / "2.png", 2)
    again = picture(tmp_path / "again.bmp", 1)  # the same pixels in another file
    test = [
        sample("seen", "What is it? A) CT, B) MRI", one),
        sample("other picture", "What is it? A) CT, B) MRI", two),
        sample("other words", "Which is it?", one),
        sample("two pictures", "What is it? A) CT, B) MRI", one, one),
        sample("in words", "no picture"),
    ]
    train = [sample("t0", "  what is it?\na) ct;  b) MRI ", again), sample("t1", "No picture!"), sample("t2", "x", one)]
    leaks = find_leaks([source("a", test), source("b", test[1:3])], train)
    assert [(leak.place, leak.id, leak.trained_on) for leak in leaks.found["a"]] == [
        (0, "seen", "train:t0"),
        (4, "in words", "train:t1"),
    ]
    assert leaks.found["b"] == [] and leaks.unreadable == []
    assert leaks.places == {"a": {0, 4}, "b": frozenset()}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_grey_picture_is_the_same_in_colour(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 9), dtype=np.uint8))
    grey.save(tmp_path / "grey.png")
    grey.convert(mode).save(tmp_path / "other.png")
    test, train = sample("t", "q", tmp_path / "grey.png"), sample("u", "q", tmp_path / "other.png")
    assert find_leaks([source("a", [test])], [train]).places == {"a": {0}}


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    one = picture(tmp_path / "1.png", 1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(one.read_bytes()[:60])
    leaks = find_leaks([source("a", [sample("s", "q", one)])], [sample("t", "q", broken), sample("u", "q", one)])
    assert [leak.trained_on for leak in leaks.found["a"]] == ["train:u"]
    assert len(leaks.unreadable) == 1 and "'t'" in leaks.unreadable[0]


def test_pictures_stay_closed_where_no_question_is_shared() -> None:
    def fail() -> Image.Image:
        raise AssertionError("opened")

    def unopened(text: str) -> Sample:
        return Sample("s", [{"role": "user", "content": text}], (fail,), answer="A")

    assert find_leaks([source("a", [unopened("one")])], [unopened("two")]).found == {"a": []}


def test_normalised() -> None:
    assert normalised(" Is  THIS\n(a) Röntgen-picture? ") == "is this a röntgen picture"


def test_duplicate_ids() -> None:
    samples = [sample(id, "q") for id in ("a", "b", "a", "c", "a")]
    assert duplicate_ids(source("x", samples)) == {"a": 3}
    assert duplicate_ids(Source("x", "x", samples, (0, 1, 3))) == {}
