"""MedXpertQA, its multimodal test questions. Layout: `MM/test.jsonl`, lines of {id, question, options {A: …}, label,
images [file], medical_task, body_system, question_type}, and `images/` (images.zip unpacked). The published question
ends in "Answer Choices: (A) …", which is cut off where the options follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_fast.data.images import ImageFile
from grpo_fast.errors import BadData
from grpo_fast.evaluate.benchmarks.records import (
    Record,
    Records,
    first_folder,
    given_letter,
    json_lines,
    misplaced,
    sample,
    with_options,
)
from grpo_fast.types import Sample

LAYOUT = "MM/test.jsonl and images/ (images.zip unpacked)"


def read(folder: Path) -> Sequence[Sample]:
    file = next((folder / name for name in ("MM/test.jsonl", "test.jsonl") if (folder / name).is_file()), None)
    if file is None:
        raise misplaced("medxpertqa", folder, "no MM/test.jsonl", LAYOUT)
    images = first_folder("medxpertqa", folder, ["images", "MM/images"], LAYOUT)

    def build(record: Record) -> Sample:
        options, names = record.fields.get("options"), record.fields.get("images")
        if not isinstance(options, dict) or not options:
            raise BadData(f"{record.place}: 'options' is not an object of letters; are these the MM questions?")
        if not isinstance(names, list) or not names:
            raise BadData(f"{record.place}: 'images' is not a list of files; are these the MM questions?")
        options = {str(letter): str(text) for letter, text in sorted(options.items())}
        question = record.text("question").split("\nAnswer Choices:")[0].rstrip()
        return sample(
            record,
            id=record.text("id"),
            parts=[*(ImageFile(images / str(name), record.place) for name in names), with_options(question, options)],
            answer=given_letter(record, record.text("label"), options),
            question_type=record.optional("question_type"),
        )

    return Records(json_lines(file), build)
