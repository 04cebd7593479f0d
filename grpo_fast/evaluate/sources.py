"""What is asked: benchmarks as `NAME:FOLDER`, or whatever `grpo-fast train --data` reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grpo_fast.data import open_data
from grpo_fast.errors import BadSettings
from grpo_fast.evaluate.benchmarks import benchmark_of, open_benchmark
from grpo_fast.types import Sample

ALL = "all"  # what tables call several sources together


@dataclass(frozen=True, slots=True)
class Source:
    name: str  # in tables and of its folder
    spec: str  # as a person typed it
    samples: Sequence[Sample]
    places: tuple[int, ...]  # in `samples`, of the questions that are asked, ascending

    def __len__(self) -> int:
        return len(self.places)


def open_sources(
    specs: Sequence[str], *, image_folders: Sequence[str] = (), max_samples: int = 0, seed: int = 0
) -> list[Source]:
    """`max_samples`: of each source, a random choice that depends on the seed alone; 0: all."""
    if len(image_folders) not in (0, 1, len(specs)):
        raise BadSettings(
            f"{len(image_folders)} image folders for {len(specs)} data: give one for each, or one for all"
        )
    found: list[Source] = []
    for number, spec in enumerate(specs):
        name, samples = _opened(spec, image_folders[number : number + 1] or image_folders[:1])
        while name in (ALL, *(source.name for source in found)):
            name = f"{name}-{number + 1}"
        found.append(Source(name, spec, samples, _chosen(len(samples), max_samples, seed)))
    return found


def slug(text: str) -> str:
    """A file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _opened(spec: str, image_folders: Sequence[str]) -> tuple[str, Sequence[Sample]]:
    if (benchmark := benchmark_of(spec)) is not None:
        return benchmark[0], open_benchmark(*benchmark)
    return slug(Path(spec).stem or spec), open_data([spec], image_folders=image_folders)


def _chosen(size: int, most: int, seed: int) -> tuple[int, ...]:
    if most == 0 or most >= size:
        return tuple(range(size))
    return tuple(sorted(np.random.default_rng(seed).choice(size, most, replace=False).tolist()))
