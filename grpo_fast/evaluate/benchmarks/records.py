"""What the benchmarks' readers share: records that become samples when asked for, and errors that say what was
expected where."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from grpo_fast.data import names
from grpo_fast.data.images import ImageFile
from grpo_fast.errors import BadData
from grpo_fast.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

Loader = Callable[[], "Image"]
Part = str | Loader  # of a question: text, or a picture in its place


class Record(NamedTuple):
    place: str  # file and number in it
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if value is None or str(value).strip() == "":
            raise BadData(f"{self.place}: no {name!r} (there: {', '.join(sorted(map(str, self.fields)))})")
        return str(value).strip()

    def image(self, folder: Path, name: str) -> ImageFile:
        return ImageFile(folder / self.text(name), self.place)

    def optional(self, name: str) -> str:
        value = self.fields.get(name)
        return "" if value is None else str(value).strip()


class Records(Sequence[Sample]):
    """A record that cannot be used raises BadData where it is asked for, and spares the others."""

    def __init__(self, records: Sequence[Record], build: Callable[[Record], Sample]) -> None:
        self.records = records
        self.build = build

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Sample | Records:
        if isinstance(index, slice):
            return Records(self.records[index], self.build)
        return self.build(self.records[index])


def sample(
    record: Record,
    *,
    id: str,
    parts: Sequence[Part],
    answer: str,
    modality: str = "",
    question_type: str = "",
    answer_type: str = "",
) -> Sample:
    loaders = tuple(part for part in parts if not isinstance(part, str))
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts if part != ""
    ]
    meta: dict[str, Any] = {"source": record.place}
    if modality:
        meta["modality"] = names.modality(modality)
    if question_type:
        meta["question_type"] = names.question_type(question_type)
    if answer_type:
        meta["answer_type"] = answer_type.lower()
    paths = [str(loader.path) for loader in loaders if isinstance(loader, ImageFile)]
    if paths:
        meta["image_paths"] = paths
    return Sample(id, [{"role": "user", "content": content}], images=loaders, answer=answer, meta=meta)


def with_options(question: str, options: Mapping[str, str]) -> str:
    """One option a line, so that one with a comma in it stays whole."""
    return "\n".join([question, *(f"{letter}) {text}" for letter, text in options.items())])


def letter_of(record: Record, answer: str, options: Mapping[str, str]) -> str:
    """The letter of the option that the gold answer repeats."""
    wanted = answer.strip().casefold()
    found = [letter for letter, text in options.items() if text.strip().casefold() == wanted]
    if len(found) != 1:
        shown = "; ".join(f"{letter}) {text}" for letter, text in options.items())
        raise BadData(f"{record.place}: {len(found)} of the options are the answer {answer!r} ({shown})")
    return found[0]


def given_letter(record: Record, letter: str, options: Mapping[str, str]) -> str:
    letter = letter.strip().upper()
    if letter not in options:
        raise BadData(f"{record.place}: the answer {letter!r} is none of the options {', '.join(options)}")
    return letter


def misplaced(benchmark: str, folder: Path, missing: str, layout: str) -> BadData:
    if not folder.is_dir():
        missing = "there is no such folder"
    return BadData(f"{benchmark}:{folder}: {missing}; expected there: {layout}")


def first_folder(benchmark: str, folder: Path, names: Sequence[str], layout: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise misplaced(benchmark, folder, f"no folder {' or '.join(names)}", layout)


def json_array(path: Path) -> list[Record]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadData(f"{path}: expected a JSON array of objects")
    return [Record(f"{path}:{number}", one) for number, one in enumerate(found, 1)]


def json_lines(path: Path) -> list[Record]:
    records, number = [], 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                one = json.loads(line)
                if not isinstance(one, dict):
                    raise BadData(f"{path}:{number}: expected a JSON object")
                records.append(Record(f"{path}:{number}", one))
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise BadData(f"{path}:{number} is not JSON: {error}") from error
    return records
