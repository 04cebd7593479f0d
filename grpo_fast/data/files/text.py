"""JSON text to objects, with reasons that say what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_fast.errors import BadData

UTF8_BOM = b"\xef\xbb\xbf"
# What the first bytes of files that are no UTF-8 text give away.
NOT_TEXT = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x89PNG": "a PNG image, not a data file",
    b"\xff\xd8\xff": "a JPEG image, not a data file",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
}


def check_is_text(path: Path, start: bytes) -> None:
    for mark, what in NOT_TEXT.items():
        if start.startswith(mark):
            raise BadData(f"{path} is {what}")
    if b"\x00" in start.partition(b"\n")[0]:
        raise BadData(f"{path} holds NUL bytes: it is neither JSON text nor a Parquet file")


def read_span(path: str, start: int, end: int, place: str) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start)
    except OSError as error:
        raise BadData(f"{place} cannot be read any more: {error.strerror or error}") from error


def parse_json(raw: bytes, place: str) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{place}: not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}; save the file as UTF-8"
        ) from error
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or not text[error.pos :].strip()
        what = "the JSON is cut off" if cut else "not valid JSON"
        raise BadData(f"{place}: {what}: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise BadData(f"{place}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # a key that stands twice, an integer of thousands of digits
        raise BadData(f"{place}: not valid JSON: {error}") from error


def _columns(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return columns


DECODER = json.JSONDecoder(object_pairs_hook=_columns)
