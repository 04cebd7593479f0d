"""Single-answer multiple choice from labels: the gold one among others of the same modality and question type.

A distractor never clashes with the gold label, with another distractor, or with another label of the same image. Every
letter is the answer equally often, to within one. The same seed gives the same file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from string import ascii_uppercase

from grpo_fast.rewards.answers import options as read_options
from grpo_fast.rewards.text import key
from grpo_fast.synth.meaning import clash
from grpo_fast.synth.metadata import Entry
from grpo_fast.synth.wording import stems, worded

SHUFFLES = 8  # tries to find enough distractors that do not clash with one another


@dataclass(frozen=True, slots=True)
class Question:
    entry: Entry
    text: str  # with its options
    letter: str


@dataclass(slots=True)
class Written:
    questions: list[Question] = field(default_factory=list)
    short: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (modality, question type, label) → rows
    unreadable: list[str] = field(default_factory=list)  # rows whose options cannot be told apart


def write_questions(entries: Sequence[Entry], *, options: int = 4, seed: int = 0) -> Written:
    pools: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    true: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # labels of an image, by question type
    for entry in entries:
        pools[entry.modality, entry.question_type][entry.label] += 1
        true[str(entry.image), entry.question_type].add(entry.label)
    distinct = {group: _distinct(labels) for group, labels in pools.items()}
    clashes = lru_cache(maxsize=1 << 20)(clash)
    written = Written()
    places: list[int] = []
    for number, entry in enumerate(entries):
        rng = Random(f"{seed} {number}")
        pool = distinct[_group(entry)] if entry.candidates is None else list(dict.fromkeys(entry.candidates))
        own = true[str(entry.image), entry.question_type] | {entry.label}
        pool = [label for label in pool if not any(clashes(label, one) for one in own)]
        wrong = _drawn(pool, options - 1, rng)
        if wrong is None:
            written.short[(*_group(entry), entry.label)] += 1
            continue
        if not places:
            places = Random(f"{seed} letters {len(written.questions)}").sample(range(options), options)
        question = _question(entry, wrong, places[-1], rng)
        if question is None:
            written.unreadable.append(f"{entry.place}: its options cannot be told apart: {entry.label!r}, {wrong}")
            continue
        places.pop()
        written.questions.append(question)
    return written


def _group(entry: Entry) -> tuple[str, str]:
    return entry.modality, entry.question_type


def _distinct(labels: Counter[str]) -> list[str]:
    """Each text once, whatever its case and punctuation: as it is written most often."""
    by_key: dict[str, str] = {}
    for label, _ in labels.most_common():
        by_key.setdefault(key(label), label)
    return sorted(by_key.values())


def _drawn(pool: Sequence[str], count: int, rng: Random) -> list[str] | None:
    for _ in range(SHUFFLES if len(pool) >= count else 0):
        found: list[str] = []
        for label in rng.sample(pool, len(pool)):
            if not any(clash(label, one) for one in found):
                found.append(label)
            if len(found) == count:
                return found
    return None


def _question(entry: Entry, wrong: Sequence[str], place: int, rng: Random) -> Question | None:
    """None where whoever reads the options sees others."""
    shown = [*wrong]
    shown.insert(place, entry.label)
    text = worded(rng.choice(stems(entry.question_type)), entry.modality, shown)
    read = read_options(text)
    same = list(read) == list(ascii_uppercase[: len(shown)]) and list(map(key, read.values())) == list(map(key, shown))
    return Question(entry, text, ascii_uppercase[place]) if same else None
