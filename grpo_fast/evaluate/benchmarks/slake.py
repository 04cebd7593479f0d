"""SLAKE 1.0, its English test questions. Layout: `test.json`, an array of {img_name, question, answer, q_lang,
modality, answer_type, content_type, qid}, and `imgs/` (imgs.zip unpacked)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_fast.evaluate.benchmarks.records import Record, Records, first_folder, json_array, misplaced, sample
from grpo_fast.types import Sample

LAYOUT = "test.json and imgs/xmlab…/source.jpg (imgs.zip unpacked)"


def read(folder: Path) -> Sequence[Sample]:
    if not (folder / "test.json").is_file():
        raise misplaced("slake", folder, "no test.json", LAYOUT)
    images = first_folder("slake", folder, ["imgs"], LAYOUT)

    def build(record: Record) -> Sample:
        return sample(
            record,
            id=f"slake-{record.text('qid')}",
            parts=[record.image(images, "img_name"), record.text("question")],
            answer=record.text("answer"),
            modality=record.optional("modality"),
            question_type=record.optional("content_type"),
            answer_type=record.optional("answer_type"),
        )

    return Records([one for one in json_array(folder / "test.json") if one.fields.get("q_lang", "en") == "en"], build)
