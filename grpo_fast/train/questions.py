"""The questions of a run: which are trained on, which are held out, which carry a label for the warm start."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_fast.data import Dataset, open_data
from grpo_fast.errors import BadData
from grpo_fast.train.settings import Settings, WarmStartSettings

HELD_BACK = 128  # labelled questions that tell a warm start when to stop


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a supervised phase learns from, and what tells it that it has come far enough."""

    samples: Dataset
    held_back: Dataset | None = None  # None: it goes to its end


def datasets(settings: Settings) -> tuple[Dataset, Dataset]:
    """(to train on, held out), after all choices of modality, type and number."""
    data = settings.data
    chosen = {name: getattr(data, name) for name in ("modality", "question_type") if getattr(data, name)}
    train = open_data(data.data, image_folders=data.image_folders)
    train = train.where(**chosen) if chosen else train
    if data.eval_data:
        held_out = open_data(data.eval_data, image_folders=data.image_folders if len(data.image_folders) == 1 else ())
        held_out = held_out.where(**chosen) if chosen else held_out
    elif data.data == ["phantom"]:
        held_out = open_data(["phantom:test"])
        held_out = held_out.where(**chosen) if chosen else held_out
    else:
        train, held_out = train.split(data.eval_share, settings.run.seed)
    if data.max_samples:
        train = train.take(data.max_samples)
    for what, found in (("train on", train), ("hold out", held_out)):
        if len(found) == 0:
            wanted = ", ".join(value for values in chosen.values() for value in values)
            raise BadData(f"there are no questions to {what}" + (f" about {wanted}" if chosen else ""))
    return train, held_out


def labelled(settings: WarmStartSettings, train: Dataset, seed: int) -> Labelled:
    """A small part of the training data, and another to look at."""
    count = settings.warm_start_samples or min(max(len(train) // 8, 32), 1024)
    learned, held_back = train.split(min(HELD_BACK / len(train), 0.5), seed)
    return Labelled(learned.take(count), held_back)
