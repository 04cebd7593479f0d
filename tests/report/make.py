"""Synthetic run folders: every number, question and picture here is made up by a formula, none was measured.

python tests/report/make.py FOLDER       writes FOLDER/synthetic-a, -b, -eval and -matrix
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from grpo_fast.evaluate.report import Report
from grpo_fast.evaluate.stats import wilson
from grpo_fast.evaluate.tables import Row

MODALITIES = ("ct", "mri", "x-ray", "ultrasound", "dermoscopy", "fundus", "oct", "microscopy")
QUESTION_TYPES = ("modality-recognition", "anatomy-identification", "disease-diagnosis", "lesion-grading",
                  "other-biological-attributes")  # fmt: skip
WORDS = ("the", "image", "shows", "a", "bright", "rounded", "region", "with", "smooth", "border", "centre")
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(
    folder: Path, *, steps: int = 120, sft_steps: int = 30, seed: int = 0, gain: float = 0.6, finished: bool = True,
    held_out: int = 200, kept: int | None = None, groups_per_step: int = 1,
) -> Path:  # fmt: skip
    rng = random.Random(seed)
    (folder / "samples").mkdir(parents=True)
    metrics: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    timing: list[dict[str, Any]] = []
    start = 0.26
    _evaluate(rng, metrics, samples, folder, 0, start, held_out, kept)
    for step in range(1, sft_steps + 1):
        metrics.append({
            "step": step, "phase": "sft", "loss": 0.4 + 2.4 * math.exp(-step / 9) + 0.05 * rng.gauss(0, 1),
            "grad_norm": 1 + rng.random(), "learning_rate": 2e-5 * min(1, step / 5),
        })  # fmt: skip
        timing.append({"step": step, "phase": "sft", "seconds": 0.4, "tokens_per_second": 9000 + 200 * rng.gauss(0, 1)})
    if sft_steps:
        _evaluate(rng, metrics, samples, folder, sft_steps, start + 0.15, held_out, kept)
    for step in range(1, steps + 1):
        share = start + 0.15 + gain * (1 - math.exp(-3 * step / steps)) / (1 - math.exp(-3))
        share = min(0.98, share)
        length = 128 - 50 * step / steps + 6 * rng.gauss(0, 1)
        metrics.append({
            "step": step, "phase": "grpo", "reward": share + 0.9 + 0.08 * rng.gauss(0, 1),
            "reward/accuracy": min(1, max(0, share + 0.06 * rng.gauss(0, 1))),
            "reward/format": 1 - 0.6 * math.exp(-step / 12) - 0.02 * rng.random(),
            "reward_std": 0.5 * math.sqrt(share * (1 - share)) + 0.02 * rng.random(),
            "kl": 0.08 * step / steps + 0.004 * rng.random(),
            "entropy": 1.1 * math.exp(-step / 80) + 0.05 * rng.random(),
            "clip_low": 0.004 * rng.random(), "clip_high": 0.009 * rng.random() + 0.002, "length": length,
            "truncated": 0.2 * math.exp(-step / 20), "grad_norm": math.exp(rng.gauss(-0.4, 0.5)), "learning_rate": 1e-6,
            "loss": 0.01 * rng.gauss(0, 1), "groups_without_spread": step // 12 + rng.randrange(3),
        })  # fmt: skip
        timing.append({
            "step": step, "phase": "grpo", "seconds": 1.2 + 0.1 * rng.random(),
            "tokens_per_second": 5200 + 90 * rng.gauss(0, 1),
            "completions_per_second": 40 + rng.gauss(0, 1),
        })  # fmt: skip
        for number in range(groups_per_step):
            samples.append(_group(rng, folder, "grpo", step, share, 8, f"train-{step}-{number}"))
        if step % max(1, steps // 6) == 0:
            _evaluate(rng, metrics, samples, folder, step, share, held_out, kept)
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "timing.jsonl", timing)
    settings = {
        "model": {"model": "synthetic-vlm", "freeze_vision": seed == 0},
        "data": {"data": ["synthetic.jsonl"], "eval_samples": held_out},
        "rollout": {"prompts_per_step": 16, "group_size": 8},
        "optim": {"learning_rate": 1e-6 * (seed + 1), "steps": steps},
        "loss": {"beta": 0.04, "loss_type": "grpo", "epsilon": 0.2}, "run": {"seed": seed, "eval_every": 20},
    }  # fmt: skip
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    if finished:
        seen = [row["accuracy"] for row in metrics if row["phase"] == "eval"]
        summary = {
            "asked": held_out,
            "by_modality": {name: {"asked": len(range(place, held_out, 8))} for place, name in enumerate(MODALITIES)},
            "accuracy": {"start": seen[0], "sft": seen[1], "grpo": seen[-1]}, "completions_per_second": 39.8,
            "seconds": 171.0, "versions": {"grpo_fast": "0.0", "torch": "synthetic", "python": "3.11"},
            "device": "synthetic", "settings": settings, "model": "model",
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def _evaluate(
    rng: random.Random, metrics: list[dict[str, Any]], samples: list[dict[str, Any]], folder: Path, step: int,
    share: float, count: int, shown: int | None,
) -> None:  # fmt: skip
    rows = []
    for i in range(count):
        hard = 0.12 * math.sin(i % 40)
        rows.append(_group(rng, folder, "eval", step, min(1, max(0, share + hard)), 1, f"held-out-{i}", i))
    samples += rows[:shown]
    right = [row["completions"][0]["correct"] for row in rows]
    found = {
        "step": step, "phase": "eval", "accuracy": sum(right) / count,
        "accuracy_lenient": min(1, sum(right) / count + 0.02), "format": min(1, share + 0.2), "length": 40.0 - step / 8,
    }  # fmt: skip
    for key, names in (("modality", MODALITIES), ("question_type", QUESTION_TYPES)):
        for name in names:
            mine = [one for one, row in zip(right, rows, strict=True) if row[key] == name]
            if mine:
                found[f"accuracy/{name}"] = sum(mine) / len(mine)
    metrics.append(found)


def _group(
    rng: random.Random, folder: Path, phase: str, step: int, share: float, completions: int, name: str,
    place: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    place = rng.randrange(40) if place is None else place
    modality, kind = MODALITIES[place % 8], QUESTION_TYPES[place % 5]
    image = f"samples/{modality}.png"
    if not (folder / image).exists():
        _picture(MODALITIES.index(modality)).save(folder / image)
    gold = "ABCD"[place % 4]
    made = []
    for _ in range(completions):
        right = rng.random() < share
        letter = gold if right else rng.choice([one for one in "ABCD" if one != gold])
        words = " ".join(rng.choices(WORDS, k=max(3, int(rng.gauss(34 - 12 * share, 9)))))
        said = SCRIPT if rng.random() < 0.01 else words
        made.append({
            "text": f"<think>{said}</think><answer>{letter}</answer>",
            "rewards": {"accuracy": float(right), "format": 1.0}, "reward": 1.0 + right, "correct": right,
            "tokens": len(words.split()) + 12, "finished": rng.random() < 0.95,
        })  # fmt: skip
    rewards = [one["reward"] for one in made]
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((one - mean) ** 2 for one in rewards) / max(1, len(rewards) - 1))
    for one in made:
        if phase == "grpo":
            one["advantage"] = (one["reward"] - mean) / (spread + 1e-4)
    return {
        "step": step, "phase": phase, "id": name, "modality": modality, "question_type": kind, "images": [image],
        "question": f"[synthetic] Which of these fits the {kind.replace('-', ' ')} of picture {place}?\n"
                    "A) a ring, B) a disc, C) a bar, D) none of them",
        "answer": gold, "completions": made,
    }  # fmt: skip


def _picture(seed: int) -> Image.Image:
    rng = random.Random(seed)
    image = Image.new("RGB", (384, 384), (14 + 9 * seed, 18, 24 + 6 * seed))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, r = rng.randrange(384), rng.randrange(384), rng.randrange(14, 70)
        shade = rng.randrange(40, 220)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(shade, shade - 8 * seed % 40, shade), outline=(20, 20, 20))
    return image


def make_results(folder: Path) -> Path:
    """In the words of `grpo-fast eval`."""
    rng = random.Random(5)
    rows = []
    for model, share in (("synthetic-base", 0.42), ("synthetic-sft", 0.55), ("synthetic-grpo", 0.71)):
        for facet, names in (("overall", ("micro",)), ("modality", MODALITIES), ("question_type", QUESTION_TYPES)):
            for name in names:
                n = 400 if facet == "overall" else 60
                correct = round(n * min(1, share + (0 if facet == "overall" else 0.1 * rng.gauss(0, 1))))
                words = rng.randrange(10, 40)
                rows.append(
                    Row(
                        model, "synthetic", facet, name, n, correct, correct / n, *wilson(correct, n),
                        correct / n, *wilson(correct, n), 1.0, words, 0.0,
                    )
                )  # fmt: skip
    Report({"data": ["synthetic"]}, rows, []).write(folder)
    return folder


def make_matrix(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rng = random.Random(6)
    values = [[0.9 if i == j else 0.35 + 0.3 * rng.random() for j in range(8)] for i in range(8)]
    found = {"rows": MODALITIES, "columns": MODALITIES, "values": values, "n": [60] * 8, "title": "Synthetic matrix"}
    (folder / "matrix.json").write_text(json.dumps(found), encoding="utf-8")
    change = [[0.2 * (rng.random() - 0.5) for _ in range(5)] for _ in range(5)]
    found = {"rows": QUESTION_TYPES, "columns": QUESTION_TYPES, "values": change, "title": "Think minus no-think"}
    (folder / "matrix-think-minus-no-think.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make_run(target / "synthetic-a", groups_per_step=4)
    make_run(target / "synthetic-b", seed=1, gain=0.4, sft_steps=10, steps=150, groups_per_step=2)
    make_run(target / "synthetic-running", seed=2, finished=False, steps=40, kept=8)
    make_results(target / "synthetic-eval")
    make_matrix(target / "synthetic-matrix")
