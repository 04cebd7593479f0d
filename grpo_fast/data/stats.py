"""What a data set asks: modalities by question types, answers, lengths, image sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grpo_fast.data.context import is_context
from grpo_fast.data.dataset import Dataset
from grpo_fast.errors import BadData, BadImage
from grpo_fast.types import Sample

UNKNOWN = "unknown"
DISTINCT_ANSWERS = 100_000  # counted one by one; free text beyond that is counted together
OTHER_ANSWERS = "(others)"
IMAGES_OPENED = 256


@dataclass(slots=True)
class Stats:
    records: int = 0
    bad: int = 0
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)  # (modality, question type)
    answers: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)  # of a question
    images: Counter[int] = field(default_factory=Counter)  # of a question
    responses: int = 0  # questions that come with a text to imitate
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of the images that were opened
    unreadable_images: int = 0

    def count(self, sample: Sample) -> None:
        meta = sample.meta
        self.cells[meta.get("modality", UNKNOWN), meta.get("question_type", UNKNOWN)] += 1
        known = sample.answer in self.answers or len(self.answers) < DISTINCT_ANSWERS
        self.answers[sample.answer if known else OTHER_ANSWERS] += 1
        self.words[len(question_of(sample).split())] += 1
        self.images[len(sample.images)] += 1
        self.responses += "response" in meta

    def open_images(self, sample: Sample) -> None:
        for load in sample.images:
            try:
                self.sizes.append(load().size)
            except BadImage:
                self.unreadable_images += 1

    def by(self, label: int) -> Counter[str]:
        """Records by modality (0) or question type (1), the most frequent first."""
        found: Counter[str] = Counter()
        for cell, count in self.cells.items():
            found[cell[label]] += count
        return Counter(dict(found.most_common()))

    def as_dict(self) -> dict[str, Any]:
        cells: dict[str, dict[str, int]] = {}
        for (modality, question_type), count in sorted(self.cells.items()):
            cells.setdefault(modality, {})[question_type] = count
        return {
            "records": self.records,
            "bad": self.bad,
            "modalities": dict(self.by(0)),
            "question_types": dict(self.by(1)),
            "by_modality_and_question_type": cells,
            "answers": dict(self.answers.most_common(50)),
            "distinct_answers": len(self.answers),
            "question_words": summary(self.words),
            "images_per_question": {str(number): count for number, count in sorted(self.images.items())},
            "with_response": self.responses,
            "images_opened": len(self.sizes),
            "unreadable_images": self.unreadable_images,
            "image_width": summary(Counter(width for width, _ in self.sizes)),
            "image_height": summary(Counter(height for _, height in self.sizes)),
        }


def statistics(dataset: Dataset, tick: Callable[[], None] = lambda: None) -> Stats:
    """One pass over the records; images are opened at regular intervals, `IMAGES_OPENED` questions at most."""
    stats = Stats(records=len(dataset))
    every = max(1, -(-len(dataset) // IMAGES_OPENED))
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except BadData:
            stats.bad += 1
        else:
            stats.count(sample)
            if index % every == 0:
                stats.open_images(sample)
        tick()
    return stats


def question_of(sample: Sample) -> str:
    """The text of the last user turn, without its images and the patient's context."""
    content = sample.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if "text" in part and not is_context(part, sample.meta))


def summary(counts: Counter[int]) -> dict[str, float]:
    if not counts:
        return {}
    values = np.array(sorted(counts))
    weights = np.array([counts[value] for value in values.tolist()])
    reached = np.cumsum(weights) / weights.sum()

    def quantile(share: float) -> int:
        return int(values[np.searchsorted(reached, share - 1e-12)])

    mean = round(float((values * weights).sum() / weights.sum()), 2)
    return {"min": int(values[0]), "median": quantile(0.5), "mean": mean, "p95": quantile(0.95), "max": int(values[-1])}
