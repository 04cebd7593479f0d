"""Each reason for which a chain is refused, and which of the good ones are kept."""

from __future__ import annotations

import pytest

from grpo_fast.errors import BadSettings
from grpo_fast.synth.chains import Chain
from grpo_fast.synth.judge import jaccard, reasoning, shingles, verdicts
from grpo_fast.synth.settings import ChainSettings, Filters
from grpo_fast.types import Sample

SAMPLE = Sample(
    id="q",
    messages=[{"role": "user", "content": [{"type": "text", "text": "Which? A) CT, B) MRI, C) X-ray, D) OCT"}]}],
    answer="B",
)
GOOD = "the fat is bright and the bone is dark so this cannot be a picture made with rays"
FILTERS = Filters(min_words=5, max_words=30, max_repetition=0.1, keep=4)


def said(thought: str, answer: str = "B") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (said(GOOD), "kept"),
        (said(GOOD, " b) "), "kept"),
        (said(GOOD, "MRI"), "kept"),
        (said(GOOD) + "\n", "kept"),
        (said(GOOD, "C"), "wrong"),
        (said(GOOD, "B or C"), "wrong"),
        (f"<think>{GOOD}</think> B", "no answer"),
        ("", "no answer"),
        (f"{GOOD} <answer>B</answer>", "format"),
        (said(GOOD) + " I am sure.", "format"),
        (said(GOOD) + "<answer>B</answer>", "format"),
        (said(GOOD + " <|image_pad|>"), "format"),
        (said(GOOD + " <image>"), "format"),
        (said(GOOD + " <|im_end|>"), "format"),
        (said("it is dark here and bright there " * 4), "repetitive"),
        (said("a b c d"), "too short"),
        (said("a b c d e"), "kept"),
        (said(" ".join(map(str, range(30)))), "kept"),
        (said(" ".join(map(str, range(31)))), "too long"),
    ],
)
def test_reasons(text: str, verdict: str) -> None:
    assert verdicts(SAMPLE, [Chain(text, True)], "think", FILTERS) == [verdict]


def test_a_chain_that_was_cut_is_refused_whatever_it_says() -> None:
    assert verdicts(SAMPLE, [Chain(said(GOOD), False)], "think", FILTERS) == ["cut off"]


def test_other_formats() -> None:
    after = f"<answer>B</answer><think>{GOOD}</think>"
    assert verdicts(SAMPLE, [Chain(after, True), Chain(said(GOOD), True)], "think-after", FILTERS) == ["kept", "format"]
    direct = [Chain("<answer>B</answer>", True), Chain("<answer>A</answer>", True), Chain("<answer> B </answer>", True)]
    assert verdicts(SAMPLE, direct, "no-think", Filters(min_words=0)) == ["kept", "wrong", "near duplicate"]


def test_near_duplicates_of_kept_chains_only() -> None:
    other = "nothing but a scanner with strong magnets draws soft tissue in such fine shades of grey"
    nearly = GOOD.replace("picture", "PICTURE,").replace("fat", "grease")  # 1 word of 17: 3 of 15 shingles
    texts = [said(GOOD, "A"), said(nearly), said(GOOD), said(other), said(other + "!")]
    chains = [Chain(text, True) for text in texts]
    close = ["wrong", "kept", "near duplicate", "kept", "near duplicate"]
    assert verdicts(SAMPLE, chains, "think", FILTERS) == close
    assert verdicts(SAMPLE, chains, "think", Filters(min_words=5, keep=1)) == [*close[:3], "surplus", "surplus"]
    strict = Filters(min_words=5, keep=9, max_similarity=0.95)
    assert verdicts(SAMPLE, chains, "think", strict) == ["wrong", "kept", "kept", "kept", "near duplicate"]


def test_similarity_is_jaccard_of_shingles() -> None:
    a, b = shingles("a b c d e"), shingles("A, b; c d f")
    assert a == {("a", "b", "c"), ("b", "c", "d"), ("c", "d", "e")}
    assert jaccard(a, b) == 2 / 4
    assert jaccard(shingles(""), shingles("")) == 1 == jaccard(shingles("x"), shingles("X."))
    assert reasoning("<think>so it is</think> <answer>B</answer>") == "so it is"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"keep": 0}, "--keep"),
        ({"min_words": 9, "max_words": 8}, "leave nothing"),
        ({"max_similarity": 1.5}, "--max-similarity"),
        ({"k": 0}, "--k"),
        ({"temperature": 0.0}, "differ"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
    ],
)
def test_settings_that_say_nothing_are_refused(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(BadSettings, match=word):
        ChainSettings(**wrong) if wrong.keys() & {"k", "temperature", "top_p"} else Filters(**wrong)  # type: ignore[arg-type]


def test_seeds_belong_to_places() -> None:
    seeds = [ChainSettings(seed=3).seed_of(place) for place in range(1000)]
    assert len(set(seeds)) == 1000 and all(0 <= seed < 1 << 31 for seed in seeds)
    assert seeds[7] == ChainSettings(seed=3).seed_of(7) != ChainSettings(seed=4).seed_of(7)
