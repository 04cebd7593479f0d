"""One JSON array of objects: a single scan finds where its elements lie, and they are parsed when asked for.

The scan sees brackets, commas and quotes as arrays of positions, block by block; it never holds the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from grpo_fast.data.files.jsonl import NEWLINE, SPACE, blocks
from grpo_fast.data.files.text import UTF8_BOM, check_is_text, parse_json, read_span
from grpo_fast.errors import BadData

QUOTE, BACKSLASH, COMMA = ord('"'), ord("\\"), ord(",")
STRUCTURE = np.zeros(256, np.int8)  # how deep a byte outside strings leads; 2 marks a comma
STRUCTURE[[ord("["), ord("{")]] = 1
STRUCTURE[[ord("]"), ord("}")]] = -1
STRUCTURE[COMMA] = 2


class JSONArray:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        scan = _Scan(path)
        self._starts, self._ends, self._numbers = scan.elements()

    @property
    def folder(self) -> Path:
        return Path(self.path).parent

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, index: int) -> int:
        return int(self._numbers[index])

    def place(self, index: int) -> str:
        return f"{self.path}:{self.number(index)} (record {index + 1})"

    def record(self, index: int) -> Any:
        start, end = int(self._starts[index]), int(self._ends[index])
        if start == end:
            raise BadData(f"{self.place(index)}: an element is missing: there is a comma too many")
        place = self.place(index)
        return parse_json(read_span(self.path, start, end, place), place)


class _Scan:
    """What is carried from block to block: place, line, depth, and whether a string or an escape is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.line = 1
        self.depth = 0
        self.in_string = False
        self.escaped = False
        self.closed_at = -1  # just after the array's last bracket
        self.bounds: list[np.ndarray] = []  # the array's opening bracket, its commas and its closing bracket
        self.first: list[np.ndarray] = []  # visible bytes that begin an element, and their lines
        self.first_lines: list[np.ndarray] = []
        self.expecting = False  # an element may begin: a bound was the last visible byte
        for block in blocks(path):
            self._take(block)

    def elements(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts and ends in bytes, and the line of each start."""
        bounds = np.concatenate([np.zeros(0, np.int64), *self.bounds])
        starts, numbers = np.concatenate(self.first), np.concatenate(self.first_lines)
        if self.closed_at < 0:
            bounds = np.append(bounds, self.at)  # cut off: the last element says so when it is parsed
        # Where a bound follows a bound (`,,`, a trailing comma), the missing element starts and ends at the second.
        ends = bounds[np.searchsorted(bounds, starts)]
        if self.closed_at >= 0 and len(starts) == 1 and starts[0] == ends[0]:
            return starts[:0], ends[:0], numbers[:0]
        return starts, ends, numbers

    def _take(self, block: bytes) -> None:
        values = np.frombuffer(block, np.uint8)
        if self.at == 0:
            check_is_text(self.path, block[:512])
            if block.startswith(UTF8_BOM):
                values = values.copy()
                values[: len(UTF8_BOM)] = SPACE
        visible = values > SPACE
        if self.closed_at >= 0:
            self._refuse_rest(np.flatnonzero(visible), values)
        quotes = self._quotes(values, block)
        marks = np.flatnonzero(STRUCTURE[values])
        outside = (np.searchsorted(quotes, marks) + self.in_string) % 2 == 0
        marks = marks[outside]
        kind = STRUCTURE[values[marks]]
        step = np.where(kind == 2, 0, kind)
        after = self.depth + np.cumsum(step, dtype=np.int64)
        before = after - step
        bounds = marks[((after == 1) & (kind == 2)) | ((before == 0) & (kind == 1)) | ((after == 0) & (kind == -1))]
        closing = marks[(after == 0) & (kind == -1)]
        rest = None
        if len(closing):
            end = int(closing[0])
            bounds, rest = bounds[bounds <= end], np.flatnonzero(visible[end + 1 :]) + end + 1
            visible[end + 1 :] = False
            self.closed_at = self.at + end + 1
        self._begin(bounds, visible, values)
        self.bounds.append(bounds + self.at)
        if rest is not None:
            self._refuse_rest(rest, values)
        self.in_string ^= len(quotes) % 2 == 1
        self.depth = int(after[-1]) if len(after) else self.depth
        self.line += int(np.count_nonzero(values == NEWLINE))
        self.at += len(block)

    def _quotes(self, values: np.ndarray, block: bytes) -> np.ndarray:
        """Quotes that open or close a string: those after an odd run of backslashes do not."""
        quotes = np.flatnonzero(values == QUOTE)
        slashes = values == BACKSLASH
        carried = self.escaped
        trailing = len(block) - len(block.rstrip(b"\\"))
        self.escaped = bool(trailing % 2) ^ (carried and trailing == len(block))
        at = np.flatnonzero(slashes)
        if len(at):
            begins = np.concatenate([[True], np.diff(at) > 1])
            run_starts = np.maximum.accumulate(np.where(begins, at, 0))
            runs = at - run_starts + 1 + (carried & (run_starts == 0))
            found = np.searchsorted(at, quotes - 1).clip(max=len(at) - 1)
            escaped = (at[found] == quotes - 1) & (runs[found] % 2 == 1)
        else:
            escaped = np.zeros(len(quotes), bool)
        if carried and len(quotes) and quotes[0] == 0:
            escaped[0] = True
        return quotes[~escaped]

    def _begin(self, bounds: np.ndarray, visible: np.ndarray, values: np.ndarray) -> None:
        """The first visible byte after each bound but the closing one begins an element."""
        opening = bounds[bounds + self.at + 1 != self.closed_at] if self.closed_at >= 0 else bounds
        seen = np.flatnonzero(visible)
        wanted = np.concatenate([[0] if self.expecting else [], opening + 1]).astype(np.int64)
        found = np.searchsorted(seen, wanted)
        self.expecting = bool(len(found)) and bool(found[-1] == len(seen)) and self.closed_at < 0
        first = seen[found[found < len(seen)]]
        newlines = np.flatnonzero(values == NEWLINE)
        self.first.append(first + self.at)
        self.first_lines.append(self.line + np.searchsorted(newlines, first))

    def _refuse_rest(self, seen: np.ndarray, values: np.ndarray) -> None:
        if len(seen):
            line = self.line + int(np.count_nonzero(values[: seen[0]] == NEWLINE))
            raise BadData(
                f"{self.path}:{line}: text after the array's closing bracket; a file is one JSON array, or one object "
                "a line"
            )
