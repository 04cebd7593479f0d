"""Answers to rows: accuracy by modality, question type and source with intervals, and models compared in pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.run import Result
from grpo_fast.evaluate.sources import ALL
from grpo_fast.evaluate.stats import Paired, macro, paired_bootstrap, wilson

FACETS = ("modality", "question_type", "answer_type")
Unseen = Mapping[str, frozenset[int]]  # by source: places of questions that are in the training data


@dataclass(frozen=True, slots=True)
class Row:
    """`group` is one value of the facet; "micro" counts questions, "macro" counts the facet's groups alike."""

    model: str
    source: str
    facet: str  # overall, modality, question_type, answer_type or training_data
    group: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    lenient_accuracy: float
    lenient_low: float
    lenient_high: float
    format: float
    words: float  # mean length
    unfinished: float  # share cut at max_tokens
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    source: str
    a: str
    b: str
    extraction: str  # strict or lenient
    paired: Paired


def rows(results: Sequence[Result], seen: Unseen | None = None) -> list[Row]:
    found: list[Row] = []
    for result in results:
        names = list(result.answers)
        for source in [*names, ALL] if len(names) > 1 else names:
            within = names if source == ALL else [source]
            found += _of_source(result, source, within, seen or {})
    return found


def _of_source(result: Result, source: str, within: Sequence[str], seen: Unseen) -> list[Row]:
    every = [(name, answer) for name in within for answer in result.answers[name]]
    asked = [(name, answer) for name, answer in every if not answer.skipped]
    answers = [answer for _, answer in asked]
    head = (result.model, source)
    found = [_row(*head, "overall", "micro", answers, len(every) - len(asked))]
    if not answers:
        return found
    for facet in FACETS:
        groups = _grouped(answers, facet)
        if groups:
            found.append(_macro_row(*head, facet, groups))
            found += [_row(*head, facet, name, members) for name, members in groups.items()]
    if source == ALL:
        found.append(_macro_row(*head, "source", {name: [a for n, a in asked if n == name] for name in within}))
    if any(seen.get(name) for name in within):
        halves: dict[str, list[Answer]] = {"in it": [], "not in it": []}
        for name, answer in asked:
            halves["in it" if answer.place in seen.get(name, ()) else "not in it"].append(answer)
        found += [_row(*head, "training_data", name, members) for name, members in halves.items() if members]
    return found


def _grouped(answers: Sequence[Answer], facet: str) -> dict[str, list[Answer]]:
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        if name := getattr(answer, facet):
            groups[name].append(answer)
    return dict(sorted(groups.items()))


def _row(model: str, source: str, facet: str, group: str, answers: Sequence[Answer], skipped: int = 0) -> Row:
    n = len(answers)
    strict, lenient = sum(one.strict for one in answers), sum(one.lenient for one in answers)
    return Row(
        model, source, facet, group, n, strict,
        strict / n if n else 0.0, *wilson(strict, n), lenient / n if n else 0.0, *wilson(lenient, n),
        *_manners(answers), skipped,
    )  # fmt: skip


def _macro_row(model: str, source: str, facet: str, groups: Mapping[str, Sequence[Answer]]) -> Row:
    answers = [answer for members in groups.values() for answer in members]
    filled = [members for members in groups.values() if members]
    strict, of_strict = macro([(sum(one.strict for one in members), len(members)) for members in filled])
    lenient, of_lenient = macro([(sum(one.lenient for one in members), len(members)) for members in filled])
    correct = sum(one.strict for one in answers)
    return Row(
        model, source, facet, "macro", len(answers), correct, strict, *of_strict, lenient, *of_lenient,
        *_manners(answers),
    )  # fmt: skip


def _manners(answers: Sequence[Answer]) -> tuple[float, float, float]:
    if not answers:
        return 0.0, 0.0, 0.0
    return (
        fmean(one.formatted for one in answers),
        fmean(one.words for one in answers),
        fmean(not one.finished for one in answers),
    )


def comparisons(results: Sequence[Result], seed: int = 0) -> list[Comparison]:
    """Every two models on the questions that both answered, source by source and together."""
    found: list[Comparison] = []
    for a, b in combinations(results, 2):
        names = [name for name in a.answers if name in b.answers]
        pairs = {name: _pairs(a.answers[name], b.answers[name]) for name in names}
        if len(names) > 1:
            pairs[ALL] = [pair for name in names for pair in pairs[name]]
        for source, both in pairs.items():
            for extraction in ("strict", "lenient") if both else ():
                marks = ([getattr(one, extraction) for one, _ in both], [getattr(one, extraction) for _, one in both])
                found.append(Comparison(source, a.model, b.model, extraction, paired_bootstrap(*marks, seed)))
    return found


def _pairs(a: Sequence[Answer], b: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    other = {answer.place: answer for answer in b if not answer.skipped}
    return [(one, other[one.place]) for one in a if not one.skipped and one.place in other]


def generalisation(accuracy: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """For each model, given accuracy[trained on][tested on], its mean accuracy on what it was not trained on."""
    found = {}
    for trained, tests in accuracy.items():
        others = [value for tested, value in tests.items() if tested != trained]
        if not others:
            raise ValueError(f"{trained}: tested on nothing but what it was trained on")
        found[trained] = fmean(others)
    return found
