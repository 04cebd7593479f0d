"""What a run ends with: the model in the hub's layout, and summary.json."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import grpo_fast
from grpo_fast.evaluate.ask import FACETS
from grpo_fast.evaluate.stats import wilson
from grpo_fast.train.export import export
from grpo_fast.train.session import Session
from grpo_fast.train.state import Position

STAGES = ("start", "sft", "grpo")
PACKAGES = ("torch", "transformers", "triton", "numpy", "peft", "liger-kernel", "flash-attn")


def finish(session: Session, source: str, questions: int, command: str) -> dict[str, Any]:
    settings, position = session.settings, session.position
    model = export(session.wrapped, source, session.path / "model", merge=settings.run.save_merged)
    best = session.checkpoints / "best"
    summary: dict[str, Any] = {
        "command": command,
        **held_out(position),
        "best_accuracy": position.accuracy.get("best"),
        **session.rates(),
        "seconds": session.seconds(),
        "steps": position.step,
        "questions": questions,
        "skipped": position.skipped,
        "folder": str(session.path),
        "model": str(model),
        "best": str(best) if best.exists() else None,
        "ranks": session.ranks.world,
        "device": device_name(session),
        "versions": versions(),
        "settings": asdict(settings),
        "next": {
            "a page with curves, tables and pictures": shlex.join(["grpo-fast", "report", str(session.path)]),
            "all held-out questions, with intervals": shlex.join(["grpo-fast", "eval", *_asked(session, model)]),
        },
    }
    if session.folder is not None:
        session.folder.write_summary(summary)
    return summary


def held_out(position: Position) -> dict[str, Any]:
    """Accuracy at each stage, of all questions and by modality and type, with 95 % Wilson intervals."""
    stages = [stage for stage in STAGES if stage in position.right]
    names = list(position.right[stages[-1]]) if stages else []

    def of(name: str) -> dict[str, Any]:
        counts = {stage: position.right[stage].get(name, [0, 0]) for stage in stages}
        return {
            "accuracy": {stage: right / asked for stage, (right, asked) in counts.items() if asked},
            "intervals": {stage: list(wilson(right, asked)) for stage, (right, asked) in counts.items() if asked},
            "asked": counts[stages[-1]][1],
        }

    if not stages:
        return {"accuracy": {}}
    found = of("all")
    for facet in FACETS:
        members = [name for name in names if name.startswith(f"{facet}/")]
        found[f"by_{facet}"] = {name.partition("/")[2]: of(name) for name in members}
    return found


def _asked(session: Session, model: Path) -> list[str]:
    """As the run itself asked them."""
    settings, data = session.settings, session.settings.data
    files = data.eval_data or (["phantom:test"] if data.data == ["phantom"] else ["FILE"])
    folders = ["--image-folders", *data.image_folders] if data.eval_data and len(data.image_folders) == 1 else []
    found = ["--model", str(model), "--data", *files, *folders, "--prompt", session.style.name]
    found += ["--max-tokens", str(settings.max_tokens)]
    return found if settings.model.max_pixels is None else [*found, "--max-pixels", str(settings.model.max_pixels)]


def versions() -> dict[str, str]:
    found = {"grpo-fast": grpo_fast.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(session: Session) -> str:
    if session.ranks.device.type == "cuda":
        return torch.cuda.get_device_name(session.ranks.device)
    return f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()}"
