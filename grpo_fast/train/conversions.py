"""How a value under another trainer's name becomes settings here, or a word on why it has no effect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_fast.errors import BadSettings
from grpo_fast.train.fields import FALSE, FIELDS, NONE, TRUE

Outcome = dict[str, Any] | str  # settings by name, or the reason why there are none
Conversion = Callable[[Any], Outcome]


@dataclass(frozen=True, slots=True)
class Alias:
    convert: Conversion  # raises BadSettings for what is refused
    weak: bool = False  # gives way where another name says something else


def says(value: Any, words: tuple[str, ...]) -> bool:
    return str(value).lower() in words


def truth(value: Any) -> bool:
    if not says(value, TRUE + FALSE):
        raise BadSettings(f"true or false is expected, got {value!r}")
    return says(value, TRUE)


def to(target: str, weak: bool = False) -> Alias:
    return Alias(lambda value: {target: value}, weak)


def nothing(reason: str) -> Alias:
    return Alias(lambda value: reason)


def refused(reason: str) -> Alias:
    def convert(value: Any) -> Outcome:
        if value is None or says(value, FALSE + NONE):
            return "it is off"
        raise BadSettings(reason)

    return Alias(convert)


def chosen(target: str, choices: Mapping[str, Any], weak: bool = False) -> Alias:
    def convert(value: Any) -> Outcome:
        key = str(value).lower()
        if key not in choices:
            raise BadSettings(f"{value!r} has no counterpart here; known: {', '.join(choices)}")
        return {target: choices[key]}

    return Alias(convert, weak)


def switched(on: Outcome, off: Outcome, weak: bool = False) -> Alias:
    return Alias(lambda value: on if truth(value) else off, weak)


def paths(value: Any) -> list[str]:
    """a:b as VLM-R1 writes it; a drive letter, a scheme and the split of a hub name are no separators."""
    if isinstance(value, list):
        return [path for one in value for path in paths(one)]
    parts: list[str] = []
    for part in re.split(r":(?!//)", str(value)):
        last = parts[-1] if parts else ""
        drive = re.fullmatch(r"[A-Za-z]", last) and re.match(r"[\\/]", part)
        port = re.search(r"://[^/]*$", last) and re.match(r"\d+(/|$)", part)
        split = re.fullmatch(r"phantom|[\w.-]+/[\w-]+", last) and re.fullmatch(r"train|test|val|validation|dev", part)
        if parts and (drive or port or split):
            parts[-1] = f"{last}:{part}"
        elif part:
            parts.append(part)
    return parts


def reports(value: Any) -> Outcome:
    kinds = [kind for one in (value if isinstance(value, list) else [value]) for kind in str(one).lower().split(",")]
    for kind in kinds:
        if kind not in ("wandb", "tensorboard", "all", "none", ""):
            raise BadSettings(f"{kind!r} is not known here: wandb, tensorboard or none (metrics.jsonl is always there)")
    return {name: name in kinds or "all" in kinds for name in ("wandb", "tensorboard")}


def every(target: str) -> Alias:
    def convert(value: Any) -> Outcome:
        if says(value, ("no", "false")):  # YAML reads a bare no as false
            return {target: 0}
        return "the number of steps says when" if says(value, ("steps", "best")) else f"there is --{target}, in steps"

    return Alias(convert, weak=True)


def fsdp(value: Any) -> Outcome:
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if "offload" in words:
        raise BadSettings("weights are not offloaded to the CPU; --parallel fsdp2 shards them over the devices")
    return {"parallel": "fsdp2"} if value is True or (words.split() and not says(words, FALSE + NONE)) else "it is off"


def resumed(value: Any) -> Outcome:
    if says(value, TRUE + FALSE):
        return {"resume": "on" if truth(value) else "off"}
    if value is None or says(value, NONE):
        return "it names nothing"
    raise BadSettings(f"a run goes on in its own folder: --output RUN --resume on, not from {value}")


def schedule_kwargs(value: Any) -> Outcome:
    try:
        given = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise BadSettings(f"JSON is expected: {error}") from error
    if not isinstance(given, dict) or set(given) - {"min_lr_rate"}:
        raise BadSettings(f"only min_lr_rate has a counterpart here (lr_floor), got {given}")
    return {"lr_floor": given["min_lr_rate"]} if given else "it is empty"


def share(value: Any) -> Outcome:
    share = FIELDS["eval_share"].read(value)
    return {"eval_share": share} if share else "held-out questions are always asked: --eval-data, or --eval-share"


def revision(value: Any) -> Outcome:
    if value is None or says(value, (*NONE, "main")):
        return "it is what is read"
    raise BadSettings(f"only main is read from the hub: `hf download NAME --revision {value}`, then --model FOLDER")
