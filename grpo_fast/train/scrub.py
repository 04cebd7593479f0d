"""No key or token in what a run writes or prints.

A value goes if its name says secret, if it looks like a known kind of token, or if it holds the value of an environment
variable whose name says secret. A secret under a harmless name and in no known form stays: nothing tells it apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

GONE = "***"
SECRET_NAME = re.compile(
    r"(^|[_.\-])(tokens?|keys?|api_?keys?)$|secret|passw(or)?d|credential|authorization|(access|auth|api)_?(token|key)",
    re.IGNORECASE,
)
SECRET_TEXT = re.compile(
    r"""
    \bhf_(?=[a-z]*[A-Z0-9]|[a-z]{24})[A-Za-z0-9]{6,}        # Hugging Face; not a folder called hf_datasets
    | \bsk-(?=[a-z_-]*[A-Z0-9]|[a-z_-]{24})[\w-]{8,}        # OpenAI and those after it
    | \b(?:gh[a-z]_|github_pat_|glpat-|xox[a-z]-)[\w-]{10,}
    | \bAKIA[0-9A-Z]{16}\b
    | \bAIza[\w-]{30,}
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}                  # JSON web tokens
    | (?<=\bBearer\ )[\w.~+/=-]{8,}
    | (?<=://)[^\s/@:]*:[^\s/@]+(?=@)                       # user:password@host
    """,
    re.VERBOSE,
)
SHORTEST = 8  # of an environment variable's value that is looked for inside other texts


def scrubbed(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with every secret replaced by `***`. Numbers stay: no secret is one, and many counts are of tokens."""
    return {name: _scrubbed(value, bool(SECRET_NAME.search(str(name)))) for name, value in mapping.items()}


def scrubbed_text(text: str) -> str:
    for value in _secrets_of_the_environment():
        text = text.replace(value, GONE)
    return SECRET_TEXT.sub(GONE, text)


def _scrubbed(value: Any, secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _scrubbed(one, secret or bool(SECRET_NAME.search(str(name)))) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrubbed(one, secret) for one in value]
    if isinstance(value, (str, bytes)):
        text = value if isinstance(value, str) else value.decode(errors="replace")
        return GONE if secret and text else scrubbed_text(text)
    return value


def _secrets_of_the_environment() -> list[str]:
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
