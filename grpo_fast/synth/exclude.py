"""Held-out questions and pictures, which must not come back as training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from grpo_fast.errors import BadData, BadImage
from grpo_fast.policy.images import decoded, to_rgb
from grpo_fast.synth.pictures import digest
from grpo_fast.types import Sample

Tick = Callable[[], None]


@dataclass(slots=True)
class HeldOut:
    """Ids count where the data give them; pictures are compared by their pixels, so that a lossy copy is not seen."""

    ids: dict[str, str] = field(default_factory=dict)  # id → where it stands
    pictures: dict[bytes, str] = field(default_factory=dict)  # digest → where it stands
    unreadable: list[str] = field(default_factory=list)  # what could not be compared, and why

    @classmethod
    def of(cls, held_out: Sequence[Sample], tick: Tick = lambda: None) -> HeldOut:
        found = cls()
        for index in range(len(held_out)):
            try:
                sample = held_out[index]
                where = str(sample.meta.get("source") or sample.id)
                if _has_id(sample):
                    found.ids.setdefault(sample.id, where)
                for number, key in enumerate(_digests(sample)):
                    found.pictures.setdefault(key, f"{where}, image {number}")
            except (BadData, BadImage) as error:
                found.unreadable.append(str(error))
            tick()
        return found

    def reason(self, sample: Sample) -> str:
        """Why a sample is held out; "" where it is not. Raises BadImage where its pictures cannot be read."""
        if _has_id(sample) and sample.id in self.ids:
            return f"its id stands in {self.ids[sample.id]}"
        for number, key in enumerate(_digests(sample)):
            if key in self.pictures:
                return f"its image {number} is that of {self.pictures[key]}"
        return ""


def _has_id(sample: Sample) -> bool:
    return sample.id != sample.meta.get("source")


def _digests(sample: Sample) -> list[bytes]:
    names = (f"sample {sample.id!r}, image {number}" for number in range(len(sample.images)))
    return [digest(to_rgb(decoded(load, where), where)) for load, where in zip(sample.images, names, strict=True)]
