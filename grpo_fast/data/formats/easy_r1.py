"""EasyR1: `problem`, `answer` and `images` (paths, bytes or PIL images), each shown where `<image>` stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_fast.data.record import Format, Record
from grpo_fast.types import Sample


def recognise(columns: Mapping[str, Any]) -> bool:
    return "problem" in columns and "answer" in columns


def sample(record: Record) -> Sample:
    answer = record.gold(record.columns.get("answer"), "answer")
    return record.sample(
        [("user", record.text("problem"))], record.image_references(), answer, videos=record.video_references()
    )


EASY_R1 = Format("easyr1", "problem, answer, images", recognise, sample)
