"""PathVQA. Layout: the hub's `data/test-*.parquet` with image, question and answer. The older release keeps its
questions in pickles, which can run code when they are opened: they are not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_fast.errors import BadData
from grpo_fast.evaluate.benchmarks.hub import read_hub
from grpo_fast.evaluate.benchmarks.records import misplaced
from grpo_fast.types import Sample

LAYOUT = "data/test-*.parquet, as in flaviagiammarino/path-vqa on the hub"


def read(folder: Path) -> Sequence[Sample]:
    if (found := read_hub("pathvqa", folder)) is not None:
        return found
    if pickle := next(folder.rglob("*.pkl"), None):
        raise BadData(f"pathvqa:{folder}: {pickle} is a pickle and could run code; expected instead: {LAYOUT}")
    raise misplaced("pathvqa", folder, "no data/test-*.parquet", LAYOUT)
