"""Parquet by row groups, and the Arrow files of datasets' `save_to_disk` by memory map."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_fast.data.files.rows import INSTALL
from grpo_fast.errors import BadData

if TYPE_CHECKING:
    import pyarrow

CACHE_BYTES = 256 << 20  # row groups kept decoded; the newest one always is


class Table:
    """Rows in chunks that are loaded when asked for."""

    def __init__(self, path: Path, lengths: list[int], folder: Path) -> None:
        self.path = str(path)
        self.folder = folder
        self._starts = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def number(self, index: int) -> int:
        return index + 1

    def place(self, index: int) -> str:
        return f"{self.path}: row {index + 1}"

    def record(self, index: int) -> Any:
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[chunk])
        try:
            return self._chunk(chunk).slice(row, 1).to_pylist()[0]
        except (OSError, ValueError) as error:
            raise BadData(f"{self.place(index)} cannot be read: {_first_line(error)}") from error

    def _chunk(self, chunk: int) -> pyarrow.Table | pyarrow.RecordBatch:
        raise NotImplementedError


class Parquet(Table):
    def __init__(self, path: Path) -> None:
        self._file = _open_parquet(path)
        metadata = self._file.metadata
        lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        super().__init__(path, lengths, path.parent)
        self._kept: OrderedDict[int, pyarrow.Table] = OrderedDict()

    def _chunk(self, chunk: int) -> pyarrow.Table:
        if chunk not in self._kept:
            self._kept[chunk] = self._file.read_row_group(chunk)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(chunk)
        return self._kept[chunk]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_kept": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=_open_parquet(Path(state["path"])))


class SavedToDisk(Table):
    """A folder that `datasets.Dataset.save_to_disk` wrote; `datasets` itself is not needed."""

    def __init__(self, folder: Path) -> None:
        self._batches = _map_batches(folder)
        super().__init__(folder, [batch.num_rows for batch in self._batches], folder)

    def _chunk(self, chunk: int) -> pyarrow.RecordBatch:
        return self._batches[chunk]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _batches=_map_batches(Path(state["path"])))


def open_folder(folder: Path, split: str) -> SavedToDisk:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
        if chosen not in names:
            raise BadData(f"{folder} holds the splits {', '.join(names)}: name one, as in {folder}@{names[0]}")
        return SavedToDisk(folder / chosen)
    if split:
        raise BadData(f"{folder}@{split}: the folder holds no splits")
    if not (folder / "state.json").is_file():
        suffixes = (".json", ".jsonl", ".parquet")
        inside = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in suffixes)
        hint = f"; name the files in it ({', '.join(inside[:4])}{', …' if len(inside) > 4 else ''})" if inside else ""
        raise BadData(f"{folder} is a folder, but none that datasets' save_to_disk wrote{hint}")
    return SavedToDisk(folder)


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise BadData(f"{path}: Parquet files need pyarrow: {INSTALL}") from error
    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:
        raise BadData(f"{path} is no readable Parquet file: {_first_line(error)}") from error


def _map_batches(folder: Path) -> list[Any]:
    try:
        import pyarrow
    except ImportError as error:
        raise BadData(f"{folder}: data sets saved to disk need pyarrow: {INSTALL}") from error
    path = folder / "state.json"
    try:
        names = [one["filename"] for one in json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
        batches = []
        for name in names:
            path = folder / name
            with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
                batches += [batch for batch in stream if batch.num_rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} cannot be read: {_first_line(error)}; save the data set again") from error
    return batches


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
