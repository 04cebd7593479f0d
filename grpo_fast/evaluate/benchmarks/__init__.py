"""Published benchmarks in local folders, laid out as their owners publish them: `NAME:FOLDER`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_fast.errors import BadData
from grpo_fast.evaluate.benchmarks import (
    gmai_mmbench,
    medxpertqa,
    mmmu,
    omnimedvqa,
    path_vqa,
    pmc_vqa,
    slake,
    vqa_rad,
)
from grpo_fast.types import Sample

BENCHMARKS: dict[str, Callable[[Path], Sequence[Sample]]] = {
    "omnimedvqa": omnimedvqa.read,
    "gmai-mmbench": gmai_mmbench.read,
    "mmmu": mmmu.read,
    "vqa-rad": vqa_rad.read,
    "slake": slake.read,
    "pathvqa": path_vqa.read,
    "pmc-vqa": pmc_vqa.read,
    "medxpertqa": medxpertqa.read,
}


def benchmark_of(source: str) -> tuple[str, Path] | None:
    """("slake", folder) of "slake:folder"; None where no benchmark is meant."""
    name, colon, folder = source.partition(":")
    name = name.lower().replace("_", "-")
    if colon and name in BENCHMARKS:
        return name, Path(folder).expanduser()
    if colon and (near := difflib.get_close_matches(name, BENCHMARKS, n=1)) and Path(folder).expanduser().is_dir():
        raise BadData(f"--data {source}: there is no benchmark {name!r}; did you mean {near[0]}:{folder}?")
    return None


def open_benchmark(name: str, folder: Path) -> Sequence[Sample]:
    samples = BENCHMARKS[name](folder)
    if not len(samples):
        raise BadData(f"{name}:{folder} holds no questions")
    return samples
