"""Which chains of a question are kept, and why the others are not: the first reason that applies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo_fast.rewards.accuracy import gold_of, method_of, question_of
from grpo_fast.rewards.answers import extract, is_correct
from grpo_fast.rewards.format import TAG, follows_format
from grpo_fast.rewards.repetition import repetition
from grpo_fast.synth.chains import Chain
from grpo_fast.synth.settings import Filters
from grpo_fast.types import Sample

KEPT = "kept"
REASONS = (
    "cut off",  # at max_tokens
    "no answer",
    "wrong",
    "format",
    "repetitive",
    "too short",
    "too long",
    "near duplicate",  # of a kept chain of the same question
    "surplus",  # good, but --keep were kept already
)
ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL | re.IGNORECASE)
MARKS = re.compile(r"<\|[^|<>\s]{1,40}\|>|<image>")  # in training data they would stand for a turn or a picture
SHINGLE = 3  # words


def verdicts(sample: Sample, chains: Sequence[Chain], form: str, filters: Filters) -> list[str]:
    """One of REASONS or KEPT for each chain. The first good ones are kept: an order that favours no length."""
    found: list[str] = []
    kept: list[frozenset[tuple[str, ...]]] = []
    for chain in chains:
        reason = _flaw(sample, chain, form, filters)
        if not reason:
            own = shingles(reasoning(chain.text))
            if any(jaccard(own, other) > filters.max_similarity for other in kept):
                reason = "near duplicate"
            elif len(kept) == filters.keep:
                reason = "surplus"
            else:
                kept.append(own)
        found.append(reason or KEPT)
    return found


def _flaw(sample: Sample, chain: Chain, form: str, filters: Filters) -> str:
    if not chain.finished:
        return "cut off"
    if extract(chain.text) is None:
        return "no answer"
    if not is_correct(chain.text, gold_of(sample), question=question_of(sample), method=method_of(sample)):
        return "wrong"
    if not follows_format(chain.text, form) or MARKS.search(chain.text):
        return "format"
    if -repetition(chain.text) > filters.max_repetition:
        return "repetitive"
    words = len(reasoning(chain.text).split())
    return "too short" if words < filters.min_words else "too long" if words > filters.max_words else ""


def reasoning(completion: str) -> str:
    return TAG.sub(" ", ANSWER.sub(" ", completion)).strip()


def shingles(text: str, size: int = SHINGLE) -> frozenset[tuple[str, ...]]:
    """Runs of words without case and punctuation; a text shorter than one is its own."""
    words = re.findall(r"\w+", text.casefold())
    return frozenset(tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)
