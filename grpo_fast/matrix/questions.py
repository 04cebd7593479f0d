"""The questions of a study: as they are named where that says which are held out, else written out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from grpo_fast.data import Dataset, names
from grpo_fast.data.convert import convert
from grpo_fast.errors import BadData
from grpo_fast.train.questions import datasets
from grpo_fast.train.resolved import changed
from grpo_fast.train.settings import Settings
from grpo_fast.types import Sample

FACETS = ("modality", "question_type")


def with_held_out(settings: Settings, folder: Path, say: Callable[[str], None]) -> Settings:
    """Settings under which any choice of modalities leaves the held-out questions out of training.

    Where a share of the data is held out, each choice would hold out another: the split is made once and written.
    """
    if settings.data.eval_data or settings.data.data == ["phantom"]:
        return settings
    return written_out(settings, folder, say)


def written_out(settings: Settings, folder: Path, say: Callable[[str], None]) -> Settings:
    """The same questions as two files of their own; pictures that are files stay where they are."""
    parts = datasets(changed(settings, max_samples=0))
    files = []
    for name, part in zip(("train", "held-out"), parts, strict=True):
        files.append(folder / f"{name}.jsonl")
        write_questions(part, files[-1], folder / "images" / name, say)
    return changed(
        settings, data=[str(files[0])], eval_data=[str(files[1])], image_folders=[], modality=[], question_type=[]
    )


def write_questions(part: Dataset, file: Path, images: Path, say: Callable[[str], None]) -> None:
    """Once; the file appears when it is whole."""
    if file.is_file():
        return
    written, refused = convert(part, _layout(part), file, images)
    if refused:
        say(f"{len(refused)} questions cannot be used and are left out of {file}; the first: {refused[0]}")
    if not written:
        file.unlink()
        raise BadData(f"no question can be used: {refused[0] if refused else 'there are none'}")


def cells(samples: Dataset) -> list[tuple[str, str] | None]:
    """Modality and question type of each; "" where the data do not say, None for one that cannot be read."""
    found: list[tuple[str, str] | None] = []
    for place in range(len(samples)):
        try:
            meta = samples[place].meta
        except BadData:
            found.append(None)
            continue
        found.append((str(meta.get("modality") or ""), str(meta.get("question_type") or "")))
    return found


def balanced(samples: Dataset, count: int, seed: int) -> list[int]:
    """Places of `count` of them, drawn by the seed and spread over modalities and question types; 0: all."""
    if not 0 < count < len(samples):
        return list(range(len(samples)))
    found, drawn = cells(samples), np.random.default_rng(seed).permutation(len(samples)).tolist()
    met: Counter[tuple[str, str] | None] = Counter()
    rounds: list[tuple[int, int]] = []  # (how many of its cell were drawn before it, place)
    for place in drawn:
        rounds.append((met[found[place]], place))
        met[found[place]] += 1
    return sorted(place for _, place in sorted(rounds, key=lambda one: one[0])[:count])


def groups(samples: Dataset, by: str) -> list[str]:
    """The modalities or question types that are asked about, in their usual order."""
    found = Counter(cell[FACETS.index(by)] for cell in cells(samples) if cell is not None)
    usual = [*(names.MODALITIES if by == "modality" else names.QUESTION_TYPES)]
    known = sorted((name for name in found if name), key=lambda name: ([*usual, name].index(name), name))
    if not known:
        raise BadData(f"the data name no {by.replace('_', ' ')}: there is nothing to make a matrix of")
    return known


def _layout(part: Dataset) -> str:
    """With the text to imitate, where there is one; a bare answer is put in the form of the prompt style then."""
    for sample in _first(part):
        return "vlm-r1" if "response" in sample.meta or len(sample.messages) > 1 else "easyr1"
    return "vlm-r1"


def _first(part: Dataset) -> Iterator[Sample]:
    for place in range(len(part)):
        try:
            yield part[place]
        except BadData:
            continue
