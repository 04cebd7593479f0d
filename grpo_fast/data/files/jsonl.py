"""One JSON object a line: an index of where lines start is kept, lines are parsed when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grpo_fast.data.files.text import UTF8_BOM, check_is_text, parse_json, read_span
from grpo_fast.errors import BadData

BLOCK = 1 << 22
NEWLINE, SPACE = 10, 32  # no byte up to a space is visible


class JSONLines:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        starts, visible = line_starts(path)
        self._lines = np.flatnonzero(visible) if not visible.all() else None  # blank lines are no records
        self._starts = starts  # [lines + 1] int64, the end of the file last

    @property
    def folder(self) -> Path:
        return Path(self.path).parent

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._lines is None else len(self._lines)

    def number(self, index: int) -> int:
        return 1 + (index if self._lines is None else int(self._lines[index]))

    def place(self, index: int) -> str:
        return f"{self.path}:{self.number(index)}"

    def record(self, index: int) -> Any:
        line = self.number(index) - 1
        start, end = self._starts[line : line + 2].tolist()
        place = self.place(index)
        return parse_json(read_span(self.path, start, end, place), place)


def line_starts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[lines + 1] where each line starts and where the last one ends, [lines] whether it holds more than blanks."""
    starts: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    open_start, open_visible, at = 0, False, 0  # of the line that a block ended in
    for block in blocks(path):
        if at == 0:
            check_is_text(path, block[:512])
            open_start = len(UTF8_BOM) if block.startswith(UTF8_BOM) else 0
        values = np.frombuffer(block, np.uint8)
        seen = values > SPACE
        if at == 0:
            seen[:open_start] = False
        ends = np.flatnonzero(values == NEWLINE)
        if not len(ends):
            open_visible |= bool(seen.any())
            at += len(block)
            continue
        begins = np.concatenate([[0], ends[:-1] + 1])
        whole = np.logical_or.reduceat(seen[: ends[-1] + 1], begins)
        whole[0] |= open_visible
        begins += at
        begins[0] = open_start
        starts.append(begins)
        visible.append(whole)
        open_start, open_visible = at + int(ends[-1]) + 1, bool(seen[ends[-1] + 1 :].any())
        at += len(block)
    if open_start < at:
        starts.append(np.array([open_start]))
        visible.append(np.array([open_visible]))
    return np.concatenate([*starts, [at]]).astype(np.int64), np.concatenate([np.zeros(0, bool), *visible])


def blocks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror or error}") from error
