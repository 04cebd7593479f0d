"""Named settings that ship with the package: what is known of a published method, and what is a default of ours."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from grpo_fast.errors import BadSettings
from grpo_fast.train.fields import FIELDS, nearest
from grpo_fast.train.resolved import TINY
from grpo_fast.train.settings_file import Entry, entries

OF_TINY = "phantom"  # the recipe that the tiny model is trained by
TINY_SECTIONS = ("optim", "warm_start")
TINY_FIELDS = ("max_completion_length", "max_prompt_tokens")


def names() -> list[str]:
    return sorted(one.name.removesuffix(".yaml") for one in _folder().iterdir() if one.name.endswith(".yaml"))


def text(name: str) -> str:
    if name not in names():
        hint = nearest(name, names()) or f"; there are {', '.join(names())}"
        raise BadSettings(f"unknown recipe {name}{hint}")
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def introduction(name: str) -> str:
    """The comment that a recipe begins with: what it is, how to use it, what its marks mean."""
    return text(name).partition("\n\n")[0] + "\n"


def load(name: str, command: str) -> dict[str, Entry]:
    found = entries(text(name), f"recipe {name}")
    other = name.removesuffix("-sft") if name.endswith("-sft") else f"{name}-sft"
    if (command == "sft") != name.endswith("-sft") and other in names():
        kind = "sft" if name.endswith("-sft") else "train"
        raise BadSettings(f"{name} is a recipe of `grpo-fast {kind}`; did you mean --recipe {other}?")
    return found


def layers(name: str | None, given: Mapping[str, Any], command: str) -> tuple[list[Mapping[str, Entry]], list[str]]:
    """The settings below a user's own (`given`), lowest first, and what to say of them.

    A tiny model learns nothing at a real one's learning rate, so it always takes how it moves from its own recipe.
    """
    found: list[Mapping[str, Entry]] = [] if name is None else [load(name, command)]
    named = found[0]["model"].value if found and "model" in found[0] else TINY
    if (given.get("model") or named) != TINY or name == OF_TINY:
        return found, []
    tiny = load(OF_TINY, command)
    if name is None:
        return [tiny], []
    parts = {field: entry for field, entry in tiny.items() if field in FIELDS and _moves(field)}
    taken = sorted(parts.keys() - given.keys())
    said = (
        f"the tiny model takes {', '.join(taken)} from recipe {OF_TINY}; rewards, prompt and loss stay those of {name}"
    )
    return [*found, parts], [said] if taken else []


def _moves(field: str) -> bool:
    return FIELDS[field].section in TINY_SECTIONS or field in TINY_FIELDS


def _folder():  # -> importlib's Traversable, which moves between Python versions
    return files("grpo_fast") / "recipes"
