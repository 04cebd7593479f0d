"""What recipes, files and flags say, laid over each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_fast.errors import BadSettings
from grpo_fast.train.aliases import ALIASES, BATCH, UPDATES, Translation, translate
from grpo_fast.train.batches import UNITS, conversations_per_step, in_rollouts, prompts_per_step
from grpo_fast.train.conversions import paths
from grpo_fast.train.fields import FIELDS
from grpo_fast.train.settings_file import Entry

# what `grpo-fast sft` reads where a name of GRPO's is typed
SFT_TWINS = {"steps": "sft_steps", "epochs": "sft_epochs", "learning_rate": "sft_learning_rate"}


@dataclass(slots=True)
class Layer:
    """What one place says: under the fields' names, and under others'."""

    own: dict[str, Any]
    translation: Translation
    origins: dict[str, str]
    spelled: Callable[[str], str]
    unit: str | None = None

    @property
    def all(self) -> dict[str, Any]:
        return {**self.own, **self.translation.values}


@dataclass(slots=True)
class Merged:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def merge(layers: Sequence[Layer], command: str, world: int) -> Merged:
    found, counts, unit = Merged(), {}, "completions"
    for layer in layers:
        for name, value in layer.all.items():
            found.values[name], found.origins[name] = value, layer.origins.get(name, "")
        found.notes += layer.translation.notes
        own_counts = layer.translation.counts
        size = "sft_batch" if command == "sft" else "prompts_per_step"
        if size in layer.all:
            if batch := [name for name in BATCH if name in own_counts]:
                raise BadSettings(f"{layer.spelled(size)} and {layer.spelled(batch[0])} both set the batch: give one")
            counts = {name: one for name, one in counts.items() if name not in BATCH}
        counts = {name: one for name, one in counts.items() if UPDATES.get(name) not in layer.all}
        for name, value in own_counts.items():
            target = UPDATES.get(name, "")
            if target in layer.own:
                raise BadSettings(f"{layer.spelled(name)} is {layer.spelled(target)} here, and both are given")
            if target in layer.translation.values:
                found.notes.append(f"{layer.spelled(name)} has no effect: another name sets {layer.spelled(target)}")
            else:
                counts[name] = (value, layer)
        unit = layer.unit or unit
    _count(found, counts, unit, command, world)
    return found


def _count(found: Merged, counts: Mapping[str, tuple[Any, Layer]], unit: str, command: str, world: int) -> None:
    def value_of(name: str) -> Any:
        return found.values.get(name, FIELDS[name].default)

    def take(settings: Mapping[str, Any], note: str, origin: str) -> None:
        found.values.update(settings)
        found.origins.update(dict.fromkeys(settings, origin))
        found.notes.append(note)

    batch = {name: counts[name][0] for name in BATCH if name in counts}
    if batch:
        spelled = counts[next(iter(batch))][1].spelled
        if command == "sft":
            settings, note = conversations_per_step(batch, world=world, spelled=spelled)
        else:
            settings, note = prompts_per_step(
                batch, group_size=value_of("group_size"), unit=unit, world=world, spelled=spelled
            )
        take(settings, note, ", ".join(batch))
    updates = 1 if command == "sft" else value_of("minibatches") * value_of("updates_per_rollout")
    for name in (name for name in UPDATES if name in counts):
        value, layer = counts[name]
        target = SFT_TWINS.get(UPDATES[name], UPDATES[name]) if command == "sft" else UPDATES[name]
        settings, note = in_rollouts(name, value, target=target, updates=updates, spelled=layer.spelled)
        take(settings, note, name)


def file_layer(found: Mapping[str, Entry], command: str, note_twins: bool = False) -> Layer:
    own = {name: entry.value for name, entry in found.items() if name in FIELDS}
    foreign = {name: entry.value for name, entry in found.items() if name in ALIASES}
    origins = {
        name: entry.where.partition(",")[0] + f": {entry.comment}"
        if entry.where.startswith("recipe ") else entry.where for name, entry in found.items()
    }  # fmt: skip
    where = next(iter(found.values())).where.rpartition(", line ")[0] if found else ""
    layer = layer_of(own, foreign, origins, str, command, where)
    if "batch_unit" in found:
        layer.unit = found["batch_unit"].value
        if layer.unit not in UNITS:
            raise BadSettings(f"{found['batch_unit'].where}: batch_unit is completions or prompts, got {layer.unit!r}")
    if command == "sft" and note_twins:
        layer.translation.notes += [
            f"{name} is of GRPO: sft reads {twin}"
            for name, twin in SFT_TWINS.items() if name in own and twin not in layer.all
        ]  # fmt: skip
    return layer


def layer_of(
    own: dict[str, Any], foreign: dict[str, Any], origins: dict[str, str], spelled: Callable[[str], str],
    command: str, where: str = "",
) -> Layer:  # fmt: skip
    if "data_file_paths" in foreign and "image_folders" in own:  # VLM-R1 parts both by colons
        own["image_folders"] = paths(own["image_folders"])
    try:
        translation = translate(foreign, own, spelled, SFT_TWINS if command == "sft" else {})
    except BadSettings as error:
        raise BadSettings(f"{where}: {error}" if where else str(error)) from None
    return Layer(own, translation, origins, spelled)
