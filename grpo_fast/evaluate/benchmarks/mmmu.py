"""MMMU Health & Medicine, its validation questions (the test answers are not published). Layout: a folder for each of
the five subjects with `validation-*.parquet`: id, question, options (a Python list as text), answer, question_type,
image_1 … image_7. "<image 1>" in question and options says where a picture stands."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

from grpo_fast.errors import BadData
from grpo_fast.evaluate.benchmarks.parquet import parquet_rows
from grpo_fast.evaluate.benchmarks.records import Part, Record, Records, given_letter, misplaced, sample, with_options
from grpo_fast.types import Sample

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
IMAGES = tuple(f"image_{number}" for number in range(1, 8))
PLACE = re.compile(r"<image (\d)>")
LAYOUT = f"{', '.join(f'{subject}/' for subject in SUBJECTS)} each with validation-*.parquet"


def read(folder: Path) -> Sequence[Sample]:
    files = [sorted((folder / subject).glob("validation-*.parquet")) for subject in SUBJECTS]
    if missing := [subject for subject, found in zip(SUBJECTS, files, strict=True) if not found]:
        raise misplaced("mmmu", folder, f"no {'/validation-*.parquet, '.join(missing)}/validation-*.parquet", LAYOUT)
    rows = parquet_rows([file for found in files for file in found], ["id", "question", "options", "answer"], IMAGES)
    return Records(rows, _build)


def _build(record: Record) -> Sample:
    options = dict(zip(ascii_uppercase, _list(record, "options"), strict=False))
    text, answer = record.text("question"), record.text("answer")
    if options:
        text, answer = with_options(text, options), given_letter(record, answer, options)
    elif answer.startswith("["):
        answer = _list(record, "answer")[0]  # several spellings of one answer
    return sample(
        record,
        id=record.text("id"),
        parts=_parts(record, text),
        answer=answer,
        question_type=Path(record.place).parent.name.replace("_", " "),
        answer_type="closed" if options else "open",
    )


def _parts(record: Record, text: str) -> list[Part]:
    parts: list[Part] = []
    for number, piece in enumerate(PLACE.split(text)):
        if number % 2 == 0:
            parts.append(piece)
            continue
        picture = record.fields.get(f"image_{piece}")
        if picture is None:
            raise BadData(f"{record.place}: the text shows <image {piece}>, but image_{piece} is empty")
        parts.append(picture)
    return parts


def _list(record: Record, name: str) -> list[str]:
    value = record.fields.get(name)
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError) as error:
        raise BadData(f"{record.place}: {name!r} is not a list: {value!r}") from error
    if not isinstance(found, list):
        raise BadData(f"{record.place}: {name!r} is not a list: {value!r}")
    return [str(one) for one in found]
