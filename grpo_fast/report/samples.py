"""samples.jsonl, read once for what is counted and a second time for the few groups that are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_fast.report.accuracy import Count, Evaluation
from grpo_fast.report.folder import RunFolder, items, json_lines, line_at, mapping, number, text


@dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of a line until it is chosen."""

    offset: int
    order: int
    phase: str
    step: int
    modality: str
    question_type: str
    right: int
    judged: int

    @property
    def outcome(self) -> str:
        if not self.judged:
            return "unknown"
        return "wrong" if not self.right else "right" if self.right == self.judged else "mixed"


@dataclass(slots=True)
class SampleIndex:
    entries: list[Entry] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    words: dict[str, list[tuple[int, bool]]] = field(default_factory=dict)  # "train", "eval" → (words, right)
    questions: dict[str, Counter[str]] = field(default_factory=dict)  # "train", "eval" → modality → questions
    question_types: set[str] = field(default_factory=set)

    @property
    def last_evaluation(self) -> Evaluation | None:
        return self.evaluations[-1] if self.evaluations else None


def is_correct(completion: dict[str, Any]) -> bool | None:
    """None where neither the verdict nor an accuracy reward was written down."""
    verdict = completion.get("correct")
    if isinstance(verdict, bool):
        return verdict
    accuracy = number(mapping(completion.get("rewards")).get("accuracy"))
    return None if accuracy is None else accuracy >= 1.0


def completions_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in items(row.get("completions")) if isinstance(one, dict)]


def index_samples(run: RunFolder) -> SampleIndex:
    found = SampleIndex()
    asked: dict[str, set[str]] = {"train": set(), "eval": set()}
    for offset, row in json_lines(run.path / "samples.jsonl", run.problems):
        completions = completions_of(row)
        step = number(row.get("step"))
        if step is None or not completions:
            continue
        phase, modality, kind = text(row.get("phase")), text(row.get("modality")), text(row.get("question_type"))
        outcomes = [is_correct(one) for one in completions]
        known = [one for one in outcomes if one is not None]
        entry = Entry(offset, len(found.entries), phase, int(step), modality, kind, sum(known), len(known))
        found.entries.append(entry)
        if kind:
            found.question_types.add(kind)
        part, name = "eval" if phase == "eval" else "train", text(row.get("id")) or f"line at {offset}"
        if part == "eval":
            _evaluation(found, int(step), name).add(modality, kind, known)
        if name not in asked[part]:
            asked[part].add(name)
            found.questions.setdefault(part, Counter())[modality or "not named"] += 1
        words = [
            (len(text(one.get("text")).split()), right is True)
            for one, right in zip(completions, outcomes, strict=True)
        ]
        found.words.setdefault(part, []).extend(words)
    return found


def _evaluation(found: SampleIndex, step: int, name: str) -> Evaluation:
    """A question that comes again at the same step belongs to the next look (after a resume, or a new phase)."""
    if not found.evaluations or found.evaluations[-1].step != step or name in found.evaluations[-1].seen:
        found.evaluations.append(Evaluation(step))
        found.words["eval"] = []  # lengths are those of the last look
    found.evaluations[-1].seen.add(name)
    return found.evaluations[-1]


def late_rollouts(index: SampleIndex) -> dict[tuple[str, str], Count]:
    """Right completions by modality and question type, over the last third of the recorded steps of training."""
    train = [entry for entry in index.entries if entry.phase != "eval"]
    if not train:
        return {}
    first, last = min(entry.step for entry in train), max(entry.step for entry in train)
    cells: dict[tuple[str, str], Count] = {}
    for entry in train:
        if entry.modality and entry.question_type and entry.judged and 3 * (entry.step - first) >= 2 * (last - first):
            cells.setdefault((entry.modality, entry.question_type), Count()).add(entry.right, entry.judged)
    return cells


def choose(index: SampleIndex, wanted: int) -> list[Entry]:
    """Groups of training first, a third for evaluations; each part spread evenly over its steps."""
    train = [entry for entry in index.entries if entry.phase != "eval"]
    evals = [entry for entry in index.entries if entry.phase == "eval"]
    for_evals = min(len(evals), max(wanted // 3, wanted - len(train)))
    return _spread(train, wanted - for_evals) + _spread(evals, for_evals)


def _spread(entries: list[Entry], wanted: int) -> list[Entry]:
    """One of each of `wanted` equal stretches of the run: the kind that was chosen least often so far."""
    entries = sorted(entries, key=lambda entry: (entry.step, entry.order))
    if len(entries) <= wanted:
        return entries
    chosen: list[Entry] = []
    outcomes: Counter[str] = Counter()
    questions: Counter[tuple[str, str]] = Counter()
    for k in range(wanted):
        stretch = entries[k * len(entries) // wanted : (k + 1) * len(entries) // wanted]
        best = min(
            stretch,
            key=lambda e: (
                questions[e.modality, e.question_type] + outcomes[e.outcome] / 4,
                e.outcome != "mixed",
                e.order,
            ),
        )
        chosen.append(best)
        outcomes[best.outcome] += 1
        questions[best.modality, best.question_type] += 1
    return chosen


def rows_at(run: RunFolder, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [line_at(run.path / "samples.jsonl", entry.offset) for entry in entries]
