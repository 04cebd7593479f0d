"""OmniMedVQA. Layout: `QA_information/Open-access/*.json` (and Restricted-access, where a person has it), arrays of
{dataset, question_id, question_type, question, gt_answer, image_path, option_A …, modality_type}; `image_path` starts
at the folder (`Images/…`). One published file says `modality` for `modality_type`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_fast.evaluate.benchmarks.records import (
    Record,
    Records,
    json_array,
    letter_of,
    misplaced,
    sample,
    with_options,
)
from grpo_fast.types import Sample

LAYOUT = "QA_information/Open-access/*.json, and the Images folder that their image_path names"


def read(folder: Path) -> Sequence[Sample]:
    root = folder / "OmniMedVQA" if (folder / "OmniMedVQA" / "QA_information").is_dir() else folder
    files = sorted(root.glob("QA_information/*-access/*.json"))
    if not files:
        raise misplaced("omnimedvqa", folder, "no QA_information/Open-access/*.json", LAYOUT)
    if not (root / "Images").is_dir():
        raise misplaced("omnimedvqa", folder, "no folder Images", LAYOUT)

    def build(record: Record) -> Sample:
        letters = sorted(name[-1] for name in record.fields if name.startswith("option_"))
        options = {letter: text for letter in letters if (text := record.optional(f"option_{letter}"))}
        return sample(
            record,
            id=record.text("question_id"),
            parts=[record.image(root, "image_path"), with_options(record.text("question"), options)],
            answer=letter_of(record, record.text("gt_answer"), options),
            modality=record.optional("modality_type") or record.optional("modality"),
            question_type=record.optional("question_type"),
        )

    return Records([record for file in files for record in json_array(file)], build)
