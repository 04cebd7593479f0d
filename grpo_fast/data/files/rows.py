"""Records that something else holds: a list in memory, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_fast.errors import BadData

INSTALL = 'pip install "grpo-fast[data]"'


class Rows:
    def __init__(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        self.path = path
        self._rows = rows

    @property
    def folder(self) -> Path:
        return Path()

    def __len__(self) -> int:
        return len(self._rows)

    def number(self, index: int) -> int:
        return index + 1

    def place(self, index: int) -> str:
        return f"{self.path}: row {index + 1}"

    def record(self, index: int) -> Any:
        return self._rows[index]


class ArrowRows(Sequence[Mapping[str, Any]]):
    """A `datasets.Dataset` row by row, images as the bytes they are stored as."""

    def __init__(self, dataset: Any) -> None:
        self._table = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._table[int(index)].to_pylist()[0]


def open_hub(name: str) -> Rows:
    """`owner/name` or `owner/name@split` (default: train)."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise BadData(
            f"{name}: there is no such file; to read a data set of that name from the hub: {INSTALL}"
        ) from error
    repository, _, split = name.partition("@")
    try:
        found = load_dataset(repository, split=split or "train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise BadData(f"{name}: no such file, and no data set of the hub that can be loaded: {error}") from error
    return Rows(ArrowRows(found), name)
