"""Reads every record and says which cannot be used, where they stand, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from grpo_fast.data.dataset import Dataset
from grpo_fast.data.images import ImageBytes, ImageFile, Slice
from grpo_fast.errors import BadData, BadImage
from grpo_fast.types import Sample


class Problem(NamedTuple):
    file: str
    line: int | None  # or row; None: of the file as a whole
    reason: str  # names file and line, too


LookAt = Callable[[Sample], None]  # raises BadImage


def problems(
    dataset: Dataset, look_at: LookAt | None = None, tick: Callable[[], None] = lambda: None
) -> Iterator[Problem]:
    """At most one for each record. `look_at` opens its images, and its videos are opened then, too; without it, files
    are only looked for."""
    first_use: dict[tuple[str, int], int] = {}  # ids by their hash: a million long ids stay small
    for index in range(len(dataset)):
        file, line = dataset.place(index)
        try:
            sample = dataset[index]
            (look_at or images_are_there)(sample)
            if look_at is not None:
                for load in sample.videos:
                    load()
            if sample.id != sample.meta.get("source"):
                before = first_use.setdefault((file, hash(sample.id)), line)
                if before != line:
                    place = sample.meta.get("source", f"{file}:{line}")
                    raise BadData(f"{place}: the id {sample.id!r} was used before, in line {before}")
        except (BadData, BadImage) as error:
            yield Problem(file, line, str(error))
        tick()


def images_are_there(sample: Sample) -> None:
    for image in sample.images:
        if isinstance(image, ImageFile | Slice):
            image.found()
        elif isinstance(image, ImageBytes):
            image()
