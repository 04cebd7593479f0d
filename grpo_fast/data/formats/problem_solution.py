"""`problem` and `solution`: Med-R1's JSON array (image paths), R1-V's HF data sets (images), MM-Eureka-V0's Parquet
(`image`, or where it is null `image_path`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_fast.data.record import Format, Record
from grpo_fast.types import Sample


def recognise(columns: Mapping[str, Any]) -> bool:
    return "problem" in columns and "solution" in columns


def sample(record: Record) -> Sample:
    solution = record.columns.get("solution")
    answer = record.gold(solution, "solution")
    reasoned = isinstance(solution, str) and "<think>" in solution
    references = record.image_references()
    beside = record.columns.get("image_path")
    if not references and beside is not None:
        references = list(beside) if isinstance(beside, list) else [beside]
    return record.sample(
        [("user", record.text("problem"))],
        references,
        answer,
        videos=record.video_references(),
        response=solution if reasoned else None,
    )


PROBLEM_SOLUTION = Format("med-r1", "problem, solution, image", recognise, sample)
