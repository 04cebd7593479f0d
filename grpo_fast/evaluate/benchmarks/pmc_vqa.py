"""PMC-VQA. Layout: `test_2.csv` (non-compound figures) with `figures/` (images_2.zip), or `test.csv` with `images/`
(images.zip). Columns: Figure_path, Question, Choice A … Choice D, and the gold letter in Answer_label, or in Answer."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from grpo_fast.errors import BadData
from grpo_fast.evaluate.benchmarks.records import (
    Record,
    Records,
    first_folder,
    given_letter,
    letter_of,
    misplaced,
    sample,
    with_options,
)
from grpo_fast.types import Sample

LAYOUT = "test_2.csv with figures/ (images_2.zip unpacked), or test.csv with images/ (images.zip unpacked)"
COLUMNS = ("Figure_path", "Question", "Choice A", "Choice B", "Answer")


def read(folder: Path) -> Sequence[Sample]:
    file = next((folder / name for name in ("test_2.csv", "test.csv") if (folder / name).is_file()), None)
    if file is None:
        raise misplaced("pmc-vqa", folder, "neither test_2.csv nor test.csv", LAYOUT)
    order = ["figures", "images_2", "images"] if file.name == "test_2.csv" else ["images", "figures"]
    images = first_folder("pmc-vqa", folder, order, LAYOUT)

    def build(record: Record) -> Sample:
        options = {letter: _bare(record.optional(f"Choice {letter}"), letter) for letter in "ABCD"}
        options = {letter: text for letter, text in options.items() if text}
        answer = record.optional("Answer_label") or record.text("Answer")
        is_letter = len(answer) == 1 and answer.upper() in options
        return sample(
            record,
            id=record.place.rpartition("/")[2],
            parts=[record.image(images, "Figure_path"), with_options(record.text("Question"), options)],
            answer=given_letter(record, answer, options) if is_letter else letter_of(record, answer, options),
        )

    return Records(_rows(file), build)


def _bare(choice: str, letter: str) -> str:
    """The published choices begin with their own letter: "A:Ultrasound"."""
    return re.sub(rf"^{letter}\s*[:.)]\s*", "", choice).strip()


def _rows(file: Path) -> list[Record]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise BadData(f"{file}: no column {', '.join(missing)} (there: {', '.join(reader.fieldnames or ())})")
            return [Record(f"{file}:{number}", row) for number, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{file} cannot be read as CSV: {error}") from error
