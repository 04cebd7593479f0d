"""VQA-RAD and PathVQA as the hub has them: `data/test-*.parquet` with image, question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_fast.errors import BadData
from grpo_fast.evaluate.benchmarks.parquet import parquet_rows
from grpo_fast.evaluate.benchmarks.records import Record, Records, sample
from grpo_fast.types import Sample


def read_hub(benchmark: str, folder: Path) -> Sequence[Sample] | None:
    """None where there are no such files."""
    files = sorted(folder.glob("data/test-*.parquet")) or sorted(folder.glob("test-*.parquet"))
    if not files:
        return None

    def build(record: Record) -> Sample:
        answer, picture = record.text("answer"), record.fields["image"]
        if picture is None:
            raise BadData(f"{record.place}: 'image' is empty")
        return sample(
            record,
            id=f"{benchmark}-{record.place.rpartition('/')[2]}",
            parts=[picture, record.text("question")],
            answer=answer,
            answer_type="closed" if answer.lower() in ("yes", "no") else "open",
        )

    return Records(parquet_rows(files, ["image", "question", "answer"], ["image"]), build)
