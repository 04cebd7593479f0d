"""What other trainers' batch sizes and step counts are here: prompts per step, and rollouts.

Their batch is per device and per backward pass. TRL and VLM-R1 count completions in it; R1-V, Med-R1 and open-r1 count
prompts. Their steps are optimizer updates, of which one rollout here may make several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from grpo_fast.errors import BadSettings
from grpo_fast.train.fields import FIELDS

UNITS = ("completions", "prompts")
PER_DEVICE, ACCUMULATION = 8, 1  # TRL's and Hugging Face's defaults, for whoever gives one of the two

Spelled = Callable[[str], str]


def prompts_per_step(
    given: Mapping[str, Any], *, group_size: int, unit: str, world: int, spelled: Spelled
) -> tuple[dict[str, int], str]:
    """(settings, note) of the names of a batch: `prompts_per_step`, and `minibatches` where they ask for several."""
    device = _count(given, "per_device_train_batch_size", PER_DEVICE, spelled)
    accumulation = _count(given, "gradient_accumulation_steps", ACCUMULATION, spelled)
    passes = _count(given, "steps_per_generation", accumulation, spelled)
    if "generation_batch_size" in given:
        whole = _count(given, "generation_batch_size", 0, spelled)
        if "steps_per_generation" in given:
            raise BadSettings(f"{spelled('generation_batch_size')} and {spelled('steps_per_generation')} say one thing")
        if whole % (device * world):
            raise BadSettings(
                f"{spelled('generation_batch_size')} {whole} is no multiple of {device} × {world} devices"
            )
        passes = whole // (device * world)
    if passes % accumulation:
        raise BadSettings(
            f"{passes} batches per rollout are no multiple of {accumulation}, of which an optimizer update takes "
            f"{accumulation}"
        )
    size = device * passes * world
    sum_ = f"{device} per device × {passes} × {world} device{'s' * (world > 1)} = {size}"
    if unit == "prompts":
        prompts, words = size, f"{sum_} prompts per step"
    elif size % group_size:
        low = max(size // group_size, 1)
        raise BadSettings(
            f"{sum_} completions are no whole number of groups of {group_size} ({size} / {group_size} = "
            f"{size / group_size:.2f} prompts). Give --prompts-per-step {low} or {low + 1}, or --batch-unit prompts if "
            "the batch counts prompts, as in R1-V, Med-R1 and open-r1"
        )
    else:
        prompts = size // group_size
        words = f"{sum_} completions, / {group_size} = {prompts} prompts per step"
    found = {"prompts_per_step": prompts}
    if passes > accumulation:
        found["minibatches"] = passes // accumulation
        words += f", in {passes // accumulation} updates"
    return found, f"{', '.join(spelled(name) for name in given)}: {words} (--batch-unit {unit})"


def conversations_per_step(given: Mapping[str, Any], *, world: int, spelled: Spelled) -> tuple[dict[str, int], str]:
    device = _count(given, "per_device_train_batch_size", PER_DEVICE, spelled)
    accumulation = _count(given, "gradient_accumulation_steps", ACCUMULATION, spelled)
    size = device * accumulation * world
    words = f"{device} per device × {accumulation} × {world} device{'s' * (world > 1)} = {size} conversations per step"
    return {"sft_batch": size}, f"{', '.join(spelled(name) for name in given)}: {words}"


def in_rollouts(name: str, value: Any, *, target: str, updates: int, spelled: Spelled) -> tuple[dict[str, Any], str]:
    """A count of optimizer updates, where each rollout makes `updates` of them."""
    try:
        number = FIELDS["lr_warmup"].read(value)
    except BadSettings:
        raise BadSettings(f"{spelled(name)} must be a number, got {value!r}") from None
    if name == "max_steps" and number < 0:  # Hugging Face's way to say: as epochs ask for
        return {target: None}, f"{spelled(name)} {value} leaves it to the number of epochs"
    if name != "warmup_steps" and 0 < number < 1:
        raise BadSettings(f"{spelled(name)} {value}: give a number of steps, a share of them is not understood here")
    counted = number if number < 1 else math.ceil(number / updates)
    settings = {target: FIELDS[target].read(counted)}
    why = f": {value} optimizer updates, {updates} a step" if updates > 1 else ""
    return settings, f"{spelled(name)} is {spelled(target)} {settings[target]:g} here{why}"


def _count(given: Mapping[str, Any], name: str, default: int, spelled: Spelled) -> int:
    if name not in given:
        return default
    try:
        number = FIELDS["group_size"].read(given[name])
    except BadSettings:
        number = 0
    if number < 1:
        raise BadSettings(f"{spelled(name)} must be a whole number above 0, got {given[name]!r}")
    return number
