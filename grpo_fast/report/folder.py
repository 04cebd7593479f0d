"""What a folder holds, read with patience: a broken line is skipped and counted, a missing file is an empty one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo_fast.errors import BadData

RUN_FILES = ("metrics.jsonl", "samples.jsonl", "timing.jsonl", "settings.yaml", "summary.json")
RESULTS = "results.json"
MATRICES = "matrix*.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path
    name: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    matrices: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_run(self) -> bool:
        return any((self.path / name).exists() for name in RUN_FILES)


def read_folders(paths: Sequence[Path]) -> list[RunFolder]:
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def check_folder(path: Path) -> None:
    if not path.exists():
        raise BadData(f"{path}: there is no such folder")
    if not path.is_dir():
        raise BadData(f"{path} is a file: name the run's folder")
    if _is_known(path):
        return
    inner = sorted(child.name for child in path.iterdir() if child.is_dir() and _is_known(child))
    hint = f"; it holds the runs {', '.join(inner[:8])}: name those" if inner else ""
    raise BadData(f"{path} is no run: it has none of {', '.join((*RUN_FILES, RESULTS, 'matrix.json'))}{hint}")


def files_of(path: Path) -> list[Path]:
    found = [path / name for name in (*RUN_FILES, RESULTS)]
    return [one for one in found if one.exists()] + sorted(path.glob(MATRICES))


def _is_known(path: Path) -> bool:
    return bool(files_of(path))


def _names(paths: Sequence[Path]) -> list[str]:
    """The folder's own name, with as many parents as it takes to tell the folders apart."""
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path, times in Counter(resolved).items() if times > 1)
        raise BadData(f"{twice} is named twice")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def _read(path: Path, name: str) -> RunFolder:
    check_folder(path)
    problems: list[str] = []
    return RunFolder(
        path=path,
        name=name,
        metrics=[row for _, row in json_lines(path / "metrics.jsonl", problems)],
        timing=[row for _, row in json_lines(path / "timing.jsonl", problems)],
        settings=_settings(path / "settings.yaml", problems),
        summary=_json_object(path / "summary.json", problems),
        results=_json_object(path / RESULTS, problems),
        matrices=[_json_object(one, problems) for one in sorted(path.glob(MATRICES))],
        problems=problems,
    )


def json_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and object of each line that is one; what is none is counted into `problems` at the end."""
    if not path.exists():
        return
    broken, first, offset, number, line = 0, 0, 0, 0, b""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = _parsed(line)
                if isinstance(row, dict):
                    yield offset, row
                elif line.strip():
                    broken, first = broken + 1, first or number
                offset += len(line)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}")
        return
    if broken == 1 and first == number and not line.endswith(b"\n"):
        problems.append(f"{path.name} ends in half a line, which was left out")
    elif broken:
        problems.append(f"{path.name}: {broken} of {number} lines are no JSON objects (the first is line {first})")


def line_at(path: Path, offset: int) -> dict[str, Any]:
    with path.open("rb") as lines:
        lines.seek(offset)
        row = _parsed(lines.readline())
    return row if isinstance(row, dict) else {}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = _parsed(path.read_bytes())
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return found


def _settings(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    # PyYAML's own tags raise whatever a wrong value makes Python raise
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no settings by name")
        return {}
    return found


def number(value: Any) -> float | None:
    """A finite number, or None for everything else that a file may hold in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
