"""Which models a matrix has, how each is trained, and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_fast.matrix.jobs import Job, ask_settings
from grpo_fast.train.resolved import changed
from grpo_fast.train.settings import Settings
from grpo_fast.train.settings_file import to_yaml

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The models of one prompt style."""

    base: Job | None = None  # what every other one starts from, where it has to be made or is asked too
    jobs: list[Job]  # one for each row


def plan(
    settings: Settings,
    folder: Path,
    *,
    by: str,
    columns: Sequence[str],
    models: Mapping[str, str],
    asks_base: bool,
    samples: int,
    style: str = "",
) -> Plan:
    """`settings` are resolved. All models start from one: a tiny one is built and warmed up once, on all questions,
    as a pretrained one has seen all sorts; `style` sets the folders of several prompt styles apart."""
    asking: dict[str, Any] = {"questions": to_yaml(settings), "samples": samples, "ask": ask_settings(settings)}
    asking["answers"] = str(folder / "answers")
    prefix = f"{style}/" if style else ""
    runs = folder / "runs" / style
    if models:
        jobs = [Job(name=prefix + name, model=model, **asking) for name, model in models.items()]
        base = Job(name=prefix + BASE, model=settings.model.model, **asking)
        return Plan(base=base if asks_base else None, jobs=jobs)
    base, start = base_of(settings, runs / BASE, prefix + BASE, asking if asks_base else {})
    jobs = []
    for name in columns:
        own = changed(start, **{by: [name]}, output=str(runs / name))
        jobs.append(Job(name=prefix + name, training=to_yaml(own), model=str(runs / name / "model"), **asking))
    return Plan(base=base if asks_base or base.training else None, jobs=jobs)


def base_of(settings: Settings, run: Path, name: str, asking: Mapping[str, Any]) -> tuple[Job, Settings]:
    """The model that trainings start from, and settings that start from it. A warm start, where there is one, is a run
    of its own without a GRPO step."""
    if settings.warm_start.warm_start != "on":
        return Job(name=name, model=settings.model.model, **asking), settings
    warm = changed(settings, steps=0, output=str(run))
    model = str(run / "model")
    job = Job(name=name, training=to_yaml(warm), model=model, **asking)
    return job, changed(settings, model=model, warm_start="off")
