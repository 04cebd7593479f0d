"""Tables of images and labels: CSV, or JSON lines, with the columns image, modality, question_type, label and, where a
row brings its own distractors, candidates."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_fast.data import names
from grpo_fast.data.files.jsonl import JSONLines
from grpo_fast.data.images import ImageFile, loader
from grpo_fast.errors import BadData, BadImage

COLUMNS = ("image", "modality", "question_type", "label")


@dataclass(frozen=True, slots=True)
class Entry:
    place: str  # "file:line"
    image: Path
    modality: str
    question_type: str
    label: str
    candidates: tuple[str, ...] | None = None  # None: other labels of the same modality and question type
    id: str = ""


def read_metadata(path: Path, image_folder: Path | None = None) -> tuple[list[Entry], list[str]]:
    """The rows, and why others cannot be used."""
    folder = path.parent if image_folder is None else image_folder
    entries: list[Entry] = []
    refused: list[str] = []
    for place, row in _rows(path):
        try:
            entries.append(_entry(row() if callable(row) else row, place, folder))
        except (BadData, BadImage) as error:
            refused.append(str(error))
    if not entries and not refused:
        raise BadData(f"{path} holds no rows")
    return entries, refused


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row, or what reads it): a line that is no JSON is refused alone."""
    if not path.is_file():
        raise BadData(f"--metadata {path}: there is no such file")
    if path.suffix.lower() != ".csv":
        lines = JSONLines(path)
        for index in range(len(lines)):
            yield lines.place(index), lambda index=index: lines.record(index)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise BadData(
                    f"{path}: no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _entry(row: Any, place: str, folder: Path) -> Entry:
    if not isinstance(row, Mapping):
        raise BadData(f"{place}: the row is of type {type(row).__name__}, not an object")
    if "" in row:
        raise BadData(f"{place}: the row has more cells than the table has columns")
    image, kind, asked, label = (_text(row, name, place) for name in COLUMNS)
    load = loader(image, folder, place)
    if not isinstance(load, ImageFile):
        raise BadData(f"{place}: image is no path")
    given = row.get("candidates")
    return Entry(
        place=place,
        image=load.found(),
        modality=names.modality(kind),
        question_type=names.question_type(asked),
        label=label,
        candidates=None if given in (None, "", []) else _candidates(given, place),
        id=str(row.get("id") or ""),
    )


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadData(f"{place}: {name} is {'missing' if value is None else 'empty or no text'}")
    return " ".join(value.split())


def _candidates(given: Any, place: str) -> tuple[str, ...]:
    """A list; in a cell, a JSON list or texts between bars."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.lstrip().startswith("[") else given.split("|")
        except ValueError:
            raise BadData(f"{place}: candidates begin like a JSON list and are none") from None
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise BadData(f"{place}: candidates are no list of texts")
    return tuple(" ".join(one.split()) for one in given if one.strip())
