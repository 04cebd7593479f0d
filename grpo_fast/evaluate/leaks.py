"""Test questions that a model may have been trained on, and ids that stand for two questions."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_fast.errors import BadData, BadImage
from grpo_fast.evaluate.sources import Source
from grpo_fast.policy.images import decoded, opened, to_rgb
from grpo_fast.rewards.accuracy import question_of
from grpo_fast.types import Sample


@dataclass(frozen=True, slots=True)
class Leak:
    place: int  # in the source's samples
    id: str
    trained_on: str  # id, or file and line, in the training data


@dataclass(slots=True)
class Leaks:
    found: dict[str, list[Leak]] = field(default_factory=dict)  # by source
    unreadable: list[str] = field(default_factory=list)  # what could not be compared, and why

    @property
    def places(self) -> dict[str, frozenset[int]]:
        return {name: frozenset(leak.place for leak in leaks) for name, leaks in self.found.items()}


def find_leaks(sources: Sequence[Source], training: Sequence[Sample]) -> Leaks:
    """The same question under the same pictures: words compared without case, space and punctuation, pictures by
    their pixels, as a model sees them. Pictures are only opened where both sides ask the same question."""
    leaks = Leaks({source.name: [] for source in sources})
    asked: dict[str, list[tuple[str, int]]] = {}
    for source in sources:
        for place in source.places:
            if (words := _words_at(source.samples, place)) is not None:
                asked.setdefault(words, []).append((source.name, place))
    trained: dict[str, list[int]] = {}
    for place in range(len(training)):
        words = _words_at(training, place)
        if words is not None and words in asked:
            trained.setdefault(words, []).append(place)
    by_name = {source.name: source for source in sources}
    for words, places in trained.items():
        known: dict[str, str] = {}
        for place in places:
            if (digest := _pictures(training[place], leaks)) is not None:
                known.setdefault(digest, str(training[place].meta.get("source") or training[place].id))
        for name, place in asked[words]:
            sample = by_name[name].samples[place]
            digest = _pictures(sample, leaks)
            if digest is not None and digest in known:
                leaks.found[name].append(Leak(place, sample.id, known[digest]))
    for found in leaks.found.values():
        found.sort(key=lambda leak: leak.place)
    return leaks


def duplicate_ids(source: Source) -> dict[str, int]:
    """How often each id stands, where it does more than once among the questions asked."""
    counts: Counter[str] = Counter()
    for place in source.places:
        try:
            counts[source.samples[place].id] += 1
        except BadData:  # it is named where it is asked
            continue
    return {id: count for id, count in counts.items() if count > 1}


def _words_at(samples: Sequence[Sample], place: int) -> str | None:
    try:
        return normalised(question_of(samples[place]))
    except BadData:
        return None


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _pictures(sample: Sample, leaks: Leaks) -> str | None:
    digest = hashlib.sha256()
    try:
        frames = [frame for load in sample.videos for frame in opened(load, f"sample {sample.id!r}, a video")]
        for number, load in enumerate([*sample.images, *(lambda frame=frame: frame for frame in frames)]):
            where = f"sample {sample.id!r}, picture {number}"
            image = to_rgb(decoded(load, where), where)
            digest.update(f"{image.size} ".encode())
            digest.update(image.tobytes())
    except BadImage as error:
        leaks.unreadable.append(str(error))
        return None
    return digest.hexdigest()
