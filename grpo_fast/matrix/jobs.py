"""What a worker is told to do, and what it tells: one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from grpo_fast import errors
from grpo_fast.errors import GRPOFastError, RunFailed
from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.models import usable_device
from grpo_fast.evaluate.run import AskSettings
from grpo_fast.evaluate.sources import Source, open_sources
from grpo_fast.matrix.questions import balanced
from grpo_fast.train.fields import build
from grpo_fast.train.questions import datasets
from grpo_fast.train.settings import Settings
from grpo_fast.train.settings_file import from_yaml

HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training, unless `training` is empty, and then questions to the `model` that it made."""

    name: str
    command: str = "train"
    training: str = ""  # settings as YAML, their output the run folder
    model: str
    questions: str = ""  # settings as YAML: their held-out questions are asked
    benchmarks: list[str] = field(default_factory=list)  # asked too, as `grpo-fast eval --data` names them
    samples: int = 0  # of each source at most; 0: all
    ask: dict[str, Any] = field(default_factory=dict)  # AskSettings
    answers: str = ""  # folder

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True, slots=True)
class Done:
    answers: dict[str, list[Answer]]  # by source
    summary: dict[str, Any]  # of the training; {} where there was none


def ask_settings(settings: Settings) -> dict[str, Any]:
    """As the trainer itself asks."""
    import torch

    from grpo_fast.train.assemble import compute_dtype

    device = usable_device(settings.run.device)
    dtype = str(compute_dtype(settings.model.dtype, torch.device(device))).removeprefix("torch.")
    found = AskSettings(
        prompt=settings.data.prompt, max_tokens=settings.max_tokens, max_pixels=settings.model.max_pixels,
        dtype=dtype, device=device,
    )  # fmt: skip
    return asdict(found)


def sources(job: Job) -> list[Source]:
    found = []
    if job.questions:
        settings = build(from_yaml(job.questions, f"the questions of {job.name}"))
        _, held_out = datasets(settings)
        places = balanced(held_out, job.samples, settings.run.seed)
        spec = " ".join(settings.data.eval_data or settings.data.data)
        found.append(Source(HELD_OUT, spec, held_out, tuple(places)))
    if job.benchmarks:
        found += open_sources(job.benchmarks, max_samples=job.samples)
    return found


def failure(told: Mapping[str, Any]) -> GRPOFastError:
    """The error that a worker met, with the job's name before it."""
    kind = getattr(errors, str(told["kind"]), RunFailed)
    return kind(f"{told['job']}: {told['message']}")
