"""Rows of parquet files whose pictures stay in the file until they are looked at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import BadData, BadImage
from grpo_fast.evaluate.benchmarks.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(slots=True)
class ImageColumns:
    """The pictures of one file, read a row group at a time; the last one read is kept."""

    path: Path
    group: int = -1
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def get(self, column: str, group: int, row: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if group != self.group or column not in self.rows:
            kept = self.rows if group == self.group else {}
            try:
                table = pq.ParquetFile(self.path).read_row_group(group, columns=[column])
            except (OSError, pa.ArrowInvalid) as error:
                raise BadImage(f"{self.path}: {column!r} cannot be read: {error}") from error
            self.rows, self.group = kept | {column: table[column].to_pylist()}, group
        return self.rows[column][row]


@dataclass(frozen=True, slots=True)
class ParquetImage:
    columns: ImageColumns
    column: str
    group: int
    row: int

    def __call__(self) -> Image:
        from PIL import Image

        value = self.columns.get(self.column, self.group, self.row)
        if value is None or value["bytes"] is None:
            raise BadImage(f"{self.columns.path}, row group {self.group}, row {self.row}: {self.column!r} has no bytes")
        return Image.open(io.BytesIO(value["bytes"]))


def parquet_rows(paths: Sequence[Path], required: Sequence[str], images: Sequence[str]) -> list[Record]:
    """Each record holds the row's other columns, and a ParquetImage under each of `images` that is not null."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadData(f"{paths[0]}: parquet files need pyarrow: pip install pyarrow") from None
    records = []
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            if missing := [name for name in required if name not in names]:
                raise BadData(f"{path}: no column {', '.join(missing)} (there: {', '.join(names)})")
            pictures, columns = [name for name in images if name in names], ImageColumns(path)
            for name in pictures:
                kind = file.schema_arrow.field(name).type
                if not pa.types.is_struct(kind) or not {"bytes", "path"} <= {one.name for one in kind}:
                    raise BadData(f"{path}: {name!r} holds {kind}, expected a struct of bytes and path")
            others = [name for name in names if name not in images]
            # A picture is null where its struct is: reading the paths alone tells which, without the bytes.
            present = [f"{name}.path" for name in pictures]
            number = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[*others, *present])
                for row, fields in enumerate(table.to_pylist()):
                    number += 1
                    for name in pictures:
                        is_there = fields.pop(name, None) is not None
                        fields[name] = ParquetImage(columns, name, group, row) if is_there else None
                    records.append(Record(f"{path}:{number}", fields))
        except (OSError, pa.ArrowInvalid) as error:
            raise BadData(f"{path} cannot be read as parquet: {error}") from error
    return records
