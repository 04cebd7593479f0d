"""From what a user names (files, folders, hub names, phantom) to a Dataset; the format is recognised by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_fast.data.dataset import Dataset, Part
from grpo_fast.data.files import Source
from grpo_fast.data.files.json_array import JSONArray
from grpo_fast.data.files.jsonl import JSONLines
from grpo_fast.data.files.mixture import ingredients
from grpo_fast.data.files.rows import Rows, open_hub
from grpo_fast.data.files.tables import Parquet, open_folder
from grpo_fast.data.files.text import UTF8_BOM
from grpo_fast.data.formats import FORMATS
from grpo_fast.data.record import Format
from grpo_fast.errors import BadData, BadSettings

LOOK_AT = 64  # records, to recognise a file's format
MIXTURES = (".yaml", ".yml")
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow", *MIXTURES)
Records = Sequence[Mapping[str, Any]]


def open_data(sources: Sequence[str | Records], *, image_folders: Sequence[str] = ()) -> Dataset:
    """Files, folders of `save_to_disk`, names on the hub (`owner/name@split`), `phantom`, or records in memory.

    Image folders: one for each source, one for all, or none: then images lie beside their data file.
    """
    if not sources:
        raise BadSettings("no data is named: give at least one file, or phantom")
    if len(image_folders) not in (0, 1, len(sources)):
        raise BadSettings(
            f"{len(image_folders)} image folders for {len(sources)} data files: give one for each, or one for all"
        )
    folders = [*image_folders] * (len(sources) if len(image_folders) == 1 else 1) or [None] * len(sources)
    for folder in image_folders:
        if not Path(folder).is_dir():
            raise BadSettings(f"the image folder {folder} does not exist")
    return Dataset.joined([_open(source, folder) for source, folder in zip(sources, folders, strict=True)])


def _open(source: str | Records, image_folder: str | None) -> Dataset:
    if not isinstance(source, str):
        return _recognised(Rows(source, "records"), image_folder)
    if source == "phantom" or source.startswith("phantom:"):
        return _phantom(source.partition(":")[2] or "train")
    path = Path(source)
    if path.suffix.lower() in MIXTURES and path.is_file():
        return Dataset.joined([_ingredient(one, image_folder) for one in ingredients(path)])
    return _recognised(_source(source), image_folder)


def _ingredient(one: Any, image_folder: str | None) -> Dataset:
    if not Path(one.source).exists():
        raise BadData(f"{one.place}: there is no file {one.source}")
    whole = _open(one.source, image_folder)
    chosen = one.chosen(len(whole))
    return whole if chosen is None else whole.select(chosen)


def _phantom(split: str) -> Dataset:
    if split not in ("train", "test"):
        raise BadSettings(f"phantom:{split}: the embedded data has the splits train and test")
    from grpo_fast.data.phantom import phantom

    return Dataset([phantom(split)])


def _source(name: str) -> Source:
    path = Path(name)
    if path.is_file():
        return _file(path)
    folder, _, split = name.partition("@")
    if Path(folder).is_dir():
        return open_folder(Path(folder), split)
    if path.suffix.lower() in DATA_SUFFIXES or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise BadData(f"{name}: there is no such file")
    return open_hub(name)


def _file(path: Path) -> Source:
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
            while start and not start.removeprefix(UTF8_BOM).strip():
                start = file.read(4096)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror or error}") from error
    if not start:
        raise BadData(f"{path} is empty")
    if start.startswith(b"PAR1"):
        return Parquet(path)
    if start.startswith(b"ARROW1") or path.suffix.lower() == ".arrow":
        raise BadData(f"{path} is one Arrow file of a data set: name the folder that save_to_disk wrote")
    return JSONArray(path) if start.removeprefix(UTF8_BOM).lstrip().startswith(b"[") else JSONLines(path)


def _recognised(source: Source, image_folder: str | None) -> Dataset:
    if not len(source):
        raise BadData(f"{source.path} holds no records")
    folder = source.folder if image_folder is None else Path(image_folder)
    return Dataset([Part(source, _format(source), folder)])


def _format(source: Source) -> Format:
    first: BadData | None = None
    for index in range(min(len(source), LOOK_AT)):
        try:
            columns = source.record(index)
        except BadData as error:
            hint = "; a file is one JSON array, or one object a line" if isinstance(source, JSONLines) else ""
            first = first or BadData(f"{error}{hint}")
            continue
        if not isinstance(columns, Mapping):
            what = f"the record is of type {type(columns).__name__}, not an object with columns"
            first = first or BadData(f"{source.place(index)}: {what}")
            continue
        for one in FORMATS:
            if one.recognise(columns):
                return one
        given = ", ".join(map(str, columns)) or "(none)"
        known = "; ".join(f"{one.columns} ({one.name})" for one in FORMATS)
        first = first or BadData(f"{source.place(index)}: the columns {given} are of no known format: {known}")
    assert first is not None
    raise first
