"""Answers of three models over several seeds to figures: shares, their spread, and paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from grpo_fast.compare.combinations import Combination
from grpo_fast.compare.plan import STAGES
from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.run import Result
from grpo_fast.evaluate.sources import ALL
from grpo_fast.evaluate.stats import wilson
from grpo_fast.evaluate.tables import Comparison, Row, comparisons, rows
from grpo_fast.matrix.jobs import HELD_OUT

SEEN, UNSEEN = "seen combinations", "unseen combinations"
Answers = Mapping[tuple[int, str], Mapping[str, Sequence[Answer]]]  # (seed, stage): by source
Part = dict[tuple[int, str], list[Answer]]  # (seed, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model on one group of questions. `accuracy` counts the answers of all seeds together, with Wilson's interval;
    `mean` and `spread` (standard deviation; None for one seed) are of the seeds' own shares."""

    part: str  # the data, or the seen or unseen combinations of the held-out questions
    facet: str
    group: str
    stage: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    seeds: dict[int, float]
    mean: float
    spread: float | None


def parts(answers: Answers, left_out: Mapping[int, Sequence[Combination]]) -> dict[str, Part]:
    """Every source, and the held-out questions by whether training had their combination."""
    sources = list(dict.fromkeys(source for given in answers.values() for source in given))
    found = {source: {key: list(given[source]) for key, given in answers.items()} for source in sources}
    if any(left_out.values()) and HELD_OUT in found:
        for name, wanted in ((SEEN, False), (UNSEEN, True)):
            found[name] = {
                (seed, stage): [a for a in given if ((a.modality, a.question_type) in left_out[seed]) == wanted]
                for (seed, stage), given in found[HELD_OUT].items()
            }
    return found


def lines(found: Mapping[str, Part]) -> list[Line]:
    made = []
    for name, part in found.items():
        whole = name not in (SEEN, UNSEEN)
        for facet in ("overall", *(("modality", "question_type") if whole else ())):
            for group in [""] if facet == "overall" else _groups(part, facet):
                made += [line for stage in STAGES if (line := _line(name, part, facet, group, stage)) is not None]
    return made


def _groups(part: Part, facet: str) -> list[str]:
    return sorted({name for given in part.values() for answer in given if (name := getattr(answer, facet))})


def _line(name: str, part: Part, facet: str, group: str, stage: str) -> Line | None:
    """None where nothing was asked."""
    marks = {
        seed: [a.strict for a in given if not a.skipped and (facet == "overall" or getattr(a, facet) == group)]
        for (seed, own), given in part.items() if own == stage
    }  # fmt: skip
    marks = {seed: own for seed, own in marks.items() if own}
    if not marks:
        return None
    n, correct = sum(map(len, marks.values())), sum(map(sum, marks.values()))
    shares = {seed: sum(own) / len(own) for seed, own in marks.items()}
    low, high = wilson(correct, n)
    return Line(
        part=name, facet=facet, group=group, stage=stage, n=n, correct=correct, accuracy=correct / n, low=low,
        high=high, seeds=shares, mean=fmean(shares.values()),
        spread=stdev(shares.values()) if len(shares) > 1 else None,
    )  # fmt: skip


def results(part: Part) -> list[Result]:
    """As `grpo-fast eval` has them: one model for each stage, one source for each seed."""
    return [
        Result(stage, {f"seed {seed}": given for (seed, own), given in part.items() if own == stage})
        for stage in STAGES
    ]  # fmt: skip


def evaluation_rows(found: Mapping[str, Part]) -> list[Row]:
    """The rows of all seeds together, the part in the place of the data's name."""
    made = []
    for name, part in found.items():
        own = rows(results(part))
        together = ALL if any(row.source == ALL for row in own) else own[0].source
        made += [replace(row, source=name) for row in own if row.source == together and row.facet != "source"]
    return made


def differences(found: Mapping[str, Part], seed: int) -> dict[str, list[Comparison]]:
    """By part: every two stages, seed by seed and (source `all`) over the questions of all seeds."""
    return {name: [_turned(one) for one in comparisons(results(part), seed)] for name, part in found.items()}


def _turned(one: Comparison) -> Comparison:
    """The later stage minus the earlier one."""
    paired = one.paired
    turned = paired._replace(difference=0.0 - paired.difference, low=0.0 - paired.high, high=0.0 - paired.low)
    return replace(one, a=one.b, b=one.a, paired=turned)


def lengths(part: Part) -> dict[str, dict[str, dict[int, int]]]:
    """Of each stage, how many answers have how many words: all of them, and the correct ones."""
    found = {}
    for stage in STAGES:
        own = [a for (_, name), given in part.items() if name == stage for a in given if not a.skipped]
        found[stage] = {
            "all": dict(sorted(Counter(a.words for a in own).items())),
            "correct": dict(sorted(Counter(a.words for a in own if a.strict).items())),
        }
    return found


def verdict(found: Sequence[Line], compared: Mapping[str, Sequence[Comparison]]) -> list[str]:
    """Which of the three is above which, and whether the interval of the difference leaves 0 out."""
    said = []
    for part in dict.fromkeys(line.part for line in found):
        own = {line.stage: line for line in found if line.part == part and line.facet == "overall"}
        order = sorted(own.values(), key=lambda line: -line.accuracy)
        ranked = _ranked(order)
        words = [_clear(one) for one in compared[part] if one.extraction == "strict" and _is_whole(one, compared[part])]
        said.append(f"{part}: {ranked}. {'; '.join(words)}." if words else f"{part}: {ranked}.")
    return said


def _ranked(order: Sequence[Line]) -> str:
    text = ""
    for place, line in enumerate(order):
        if place:
            text += " = " if math.isclose(line.accuracy, order[place - 1].accuracy) else " > "
        text += f"{line.stage} {100 * line.accuracy:.1f} %"
    return text


def _is_whole(one: Comparison, every: Sequence[Comparison]) -> bool:
    return one.source == ALL or all(other.source != ALL for other in every)


def _clear(one: Comparison) -> str:
    p = one.paired
    interval = f"{100 * p.difference:+.1f} points [{100 * p.low:+.1f}, {100 * p.high:+.1f}]"
    unclear = ", not told apart" if p.low <= 0 <= p.high else ""
    return f"{one.a} − {one.b} {interval}{unclear}"
