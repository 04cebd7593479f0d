"""Accuracies with their intervals, by modality and question type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_fast.report.folder import RunFolder, items, mapping, number, text
from grpo_fast.report.settings import flattened

OVERALL, MODALITY, QUESTION_TYPE = "overall", "modality", "question_type"
MEAN = "mean of the groups"
SAME = 5e-4  # accuracies of the same evaluation, read from two files
Groups = dict[tuple[str, str], int]  # (facet, group) → questions


@dataclass(slots=True)
class Count:
    n: int = 0
    correct: int = 0

    def add(self, correct: int, n: int) -> None:
        self.n += n
        self.correct += correct

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.n if self.n else None


@dataclass(slots=True)
class Evaluation:
    """One look at the held-out questions, as far as its answers were kept."""

    step: int
    seen: set[str] = field(default_factory=set)
    groups: dict[tuple[str, str], Count] = field(default_factory=dict)  # (facet, group)
    cells: dict[tuple[str, str], Count] = field(default_factory=dict)  # (modality, question type)

    def add(self, modality: str, question_type: str, outcomes: Iterable[bool]) -> None:
        known = list(outcomes)
        keys = [(OVERALL, "")]
        keys += [(MODALITY, modality)] if modality else []
        keys += [(QUESTION_TYPE, question_type)] if question_type else []
        for key in keys:
            self.groups.setdefault(key, Count()).add(sum(known), len(known))
        if modality and question_type:
            self.cells.setdefault((modality, question_type), Count()).add(sum(known), len(known))

    @property
    def overall(self) -> Count:
        return self.groups.get((OVERALL, ""), Count())


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of accuracies; without n there is no interval."""

    facet: str
    group: str
    series: str
    accuracy: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None  # at the run's first evaluation


def interval(accuracy: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval; figures that contradict each other, as a file may have them, are brought into range."""
    from grpo_fast.evaluate.stats import wilson

    asked = max(0, round(n))
    return wilson(min(max(0, round(accuracy * asked)), asked), asked)


def evaluations_of(run: RunFolder) -> list[dict[str, Any]]:
    return [row for row in run.metrics if row.get("phase") == "eval" and number(row.get("accuracy")) is not None]


def is_complete(run: RunFolder, evaluation: Evaluation) -> bool:
    """Whether all answers of the last evaluation were kept: as many as were to be asked, with the metrics' accuracy."""
    looks, count = evaluations_of(run), evaluation.overall
    wanted = number(run.summary.get("asked")) or number(flattened(run.settings).get("eval_samples"))
    if not looks or count.accuracy is None or count.n != wanted:
        return False
    return abs(count.accuracy - looks[-1]["accuracy"]) < SAME


def asked_of(run: RunFolder, last: Evaluation | None) -> Groups:
    """How many questions each evaluation asked, where the summary tells or all answers were kept."""
    found: Groups = {}
    if last is not None and is_complete(run, last):
        found = {key: count.n for key, count in last.groups.items()}
    if (n := number(run.summary.get("asked"))) is not None:
        found[OVERALL, ""] = round(n)
    for facet in (MODALITY, QUESTION_TYPE):
        for group, told in mapping(run.summary.get(f"by_{facet}")).items():
            if (n := number(mapping(told).get("asked"))) is not None:
                found[facet, group] = round(n)
    return found


def rows_of_run(run: RunFolder, asked: Mapping[tuple[str, str], int], question_types: set[str]) -> list[Row]:
    """Of the last evaluation that the metrics tell of."""
    looks = evaluations_of(run)
    if not looks:
        return []
    first, last = looks[0], looks[-1]
    rows = []
    for name, value in last.items():
        accuracy = number(value)
        if accuracy is None or not (name == "accuracy" or name.startswith("accuracy/")):
            continue
        group = name.partition("/")[2]
        facet = OVERALL if not group else QUESTION_TYPE if group in question_types else MODALITY
        n = asked.get((facet, group))
        low, high = (None, None) if n is None else interval(accuracy, n)
        before = number(first.get(name)) if first is not last else None
        rows.append(Row(facet, group, run.name, accuracy, n, low, high, before))
    return rows


def rows_of_results(folder: RunFolder) -> list[Row]:
    """The rows of `grpo-fast eval`, one series for each model (and source, where there are several)."""
    found = [row for row in items(folder.results.get("rows")) if isinstance(row, dict)]
    several = len({text(row.get("source")) for row in found}) > 1
    rows, unread = [], 0
    for row in found:
        facet, group, accuracy = text(row.get("facet")), text(row.get("group")), number(row.get("accuracy"))
        if not facet or accuracy is None:
            unread += 1
            continue
        n, low, high = number(row.get("n")), number(row.get("low")), number(row.get("high"))
        series = text(row.get("model")) + (f" · {text(row.get('source'))}" if several else "")
        group = "" if facet == OVERALL else MEAN if group == "macro" else group
        rows.append(Row(facet, group, series, accuracy, None if n is None else round(n), low, high))
    if unread:
        folder.problems.append(f"results.json: {unread} rows have no facet or no accuracy and were left out")
    return rows
