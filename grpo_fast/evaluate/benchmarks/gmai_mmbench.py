"""GMAI-MMBench, its validation questions (the test answers are not published). Layout: `GMAI_mm_bench_VAL.tsv` (or
VLMEvalKit's `GMAI-MMBench_VAL.tsv`): index, image (base64), question, A … E, answer, "clinical vqa task", department,
"perceptual granularity". Pictures stay in the file: a row is found again by its offset."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from grpo_fast.errors import BadData, BadImage
from grpo_fast.evaluate.benchmarks.records import Record, Records, given_letter, misplaced, sample, with_options
from grpo_fast.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("GMAI_mm_bench_VAL.tsv", "GMAI-MMBench_VAL.tsv")
LAYOUT = " or ".join(NAMES)
REQUIRED = ("index", "image", "question", "A", "B", "answer")
LONGEST_FIELD = 1 << 28  # characters of one base64 picture


@dataclass(frozen=True, slots=True)
class Base64Image:
    path: Path
    offset: int  # of the row's first byte
    column: int

    def __call__(self) -> Image:
        from PIL import Image

        csv.field_size_limit(LONGEST_FIELD)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            row = next(csv.reader(_decoded(file), delimiter="\t"))
        try:
            return Image.open(io.BytesIO(base64.b64decode(row[self.column], validate=True)))
        except (binascii.Error, IndexError) as error:
            raise BadImage(f"{self.path}, byte {self.offset}: the picture is not base64: {error}") from error


def read(folder: Path) -> Sequence[Sample]:
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None:
        raise misplaced("gmai-mmbench", folder, f"neither {' nor '.join(NAMES)}", LAYOUT)
    return Records(_rows(file), _build)


def _build(record: Record) -> Sample:
    options = {letter: text for letter in "ABCDE" if (text := record.optional(letter))}
    return sample(
        record,
        id=f"gmai-mmbench-{record.text('index')}",
        parts=[record.fields["image"], with_options(record.text("question"), options)],
        answer=given_letter(record, record.text("answer"), options),
        modality=record.optional("modality"),
        question_type=record.optional("clinical vqa task"),
    )


def _rows(file: Path) -> list[Record]:
    csv.field_size_limit(LONGEST_FIELD)
    records = []
    try:
        with file.open("rb") as raw:
            reader = csv.reader(_decoded(raw), delimiter="\t")
            names = next(reader, [])
            if missing := [name for name in REQUIRED if name not in names]:
                raise BadData(f"{file}: no column {', '.join(missing)} (there: {', '.join(names)})")
            keys = [name if name in tuple("ABCDE") else name.lower() for name in names]
            offset = raw.tell()
            for number, row in enumerate(reader, 2):
                fields: dict[str, object] = dict(zip(keys, row, strict=False))
                fields["image"] = Base64Image(file, offset, names.index("image"))
                records.append(Record(f"{file}:{number}", fields))
                offset = raw.tell()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{file} cannot be read as TSV: {error}") from error
    return records


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """Line by line through readline, which, unlike iteration, keeps `tell` at the end of what was read."""
    while line := file.readline():
        yield line.decode("utf-8")
