"""Settings by name, and which of them are not the defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONGEST = 400


def flattened(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a file by sections or without them: setting → value, in the file's order."""
    from grpo_fast.train.settings import SECTIONS

    flat: dict[str, Any] = {}
    for name, value in found.items():
        if name in SECTIONS and isinstance(value, Mapping):
            flat |= {str(inner): one for inner, one in value.items()}
        else:
            flat[str(name)] = value
    return flat


def defaults() -> dict[str, Any]:
    from dataclasses import asdict

    from grpo_fast.train.settings import Settings

    return flattened(asdict(Settings()))


def shown(value: Any) -> str:
    if isinstance(value, str):
        found = value or "(empty)"
    elif value is None:
        found = "none"
    elif isinstance(value, bool):
        found = "on" if value else "off"
    elif isinstance(value, list) and all(isinstance(one, str) for one in value):
        found = ", ".join(value) or "(empty)"
    else:
        found = json.dumps(value, default=str, ensure_ascii=False)
    return found if len(found) <= LONGEST else found[: LONGEST - 1] + "…"
