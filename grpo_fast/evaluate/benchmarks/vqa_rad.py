"""VQA-RAD, its 451 test questions. Layout: `VQA_RAD Dataset Public.json`, an array of {qid, phrase_type, question_type,
image_name, answer_type, question, answer}, test ones by `phrase_type` (test_freeform, test_para), and
`VQA_RAD Image Folder/`; or the hub's `data/test-*.parquet` with image, question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_fast.evaluate.benchmarks.hub import read_hub
from grpo_fast.evaluate.benchmarks.records import Record, Records, first_folder, json_array, misplaced, sample
from grpo_fast.types import Sample

FILE = "VQA_RAD Dataset Public.json"
LAYOUT = f"{FILE!r} beside the folder 'VQA_RAD Image Folder', or data/test-*.parquet"


def read(folder: Path) -> Sequence[Sample]:
    if not (folder / FILE).is_file():
        if (found := read_hub("vqa-rad", folder)) is not None:
            return found
        raise misplaced("vqa-rad", folder, f"neither {FILE!r} nor data/test-*.parquet", LAYOUT)
    images = first_folder("vqa-rad", folder, ["VQA_RAD Image Folder", "VQA_RAD_Image_Folder"], LAYOUT)

    def build(record: Record) -> Sample:
        return sample(
            record,
            id=f"vqa-rad-{record.text('qid')}",
            parts=[record.image(images, "image_name"), record.text("question")],
            answer=record.text("answer"),
            question_type=record.optional("question_type"),
            answer_type=record.optional("answer_type"),
        )

    records = json_array(folder / FILE)
    return Records([one for one in records if one.optional("phrase_type").startswith("test")], build)
