"""VLM-R1's older YAML: a list of data files, each with the part of it to take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpo_fast.errors import BadData

STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")
SEED = 0


@dataclass(frozen=True, slots=True)
class Ingredient:
    source: str
    strategy: str  # all, first:N, end:N or random:N, with % for a share
    place: str

    def chosen(self, total: int) -> np.ndarray | None:
        """Which of `total` records to take; None: all. More than there are gives all, as VLM-R1 does."""
        if self.strategy == "all":
            return None
        found = STRATEGY.fullmatch(self.strategy)
        if found is None:
            raise BadData(
                f"{self.place}: sampling_strategy {self.strategy!r} is none of all, first:N, end:N and random:N "
                "(N a number of records, or a share such as 10%)"
            )
        kind, number, percent = found[1], int(found[2]), found[3]
        count = min(total, math.ceil(number * total / 100) if percent else number)
        if kind == "random":
            return np.random.RandomState(SEED).permutation(total)[:count]
        return np.arange(count) if kind == "first" else np.arange(total - count, total)


def ingredients(path: Path) -> list[Ingredient]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadData(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadData(f"{path} has no list `datasets:` of `- json_path: FILE`")
    return [_ingredient(entry, f"{path}, datasets[{number}]", path) for number, entry in enumerate(entries)]


def _ingredient(entry: Any, place: str, path: Path) -> Ingredient:
    source = entry.get("json_path") if isinstance(entry, dict) else None
    if not isinstance(source, str) or not source:
        raise BadData(f"{place}: json_path is missing")
    beside = path.parent / source  # VLM-R1 reads from the working folder; beside the YAML is where people look
    found = source if Path(source).exists() else str(beside)
    return Ingredient(found, str(entry.get("sampling_strategy", "all")).strip(), place)
