"""The three models of each seed: where they start, what they learn from, what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpo_fast.compare.budget import Budget, Equal, budget
from grpo_fast.compare.combinations import Combination, left_out
from grpo_fast.data import Dataset, open_data
from grpo_fast.matrix.jobs import Job, ask_settings
from grpo_fast.matrix.plan import base_of
from grpo_fast.matrix.questions import cells, write_questions, written_out
from grpo_fast.train.grpo import steps_of
from grpo_fast.train.resolved import changed
from grpo_fast.train.settings import Settings
from grpo_fast.train.settings_file import to_yaml

BASELINE, SFT, RL = STAGES = ("baseline", "+SFT", "+RL")
FOLDERS = {BASELINE: "baseline", SFT: "sft", RL: "rl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    number: int
    left_out: list[Combination]
    budget: Budget
    jobs: dict[str, Job]  # by stage


def plan(
    settings: Settings, folder: Path, *, seeds: Sequence[int], combinations: int, equal: Equal,
    benchmarks: Sequence[str], samples: int, say: Callable[[str], None],
) -> list[Seed]:  # fmt: skip
    """`settings` are resolved. Questions are written out once, so that every seed is asked the same."""
    own = written_out(settings, folder / "data", say)
    train = open_data(own.data.data)
    asking: dict[str, Any] = {
        "questions": to_yaml(changed(own, max_samples=0)), "benchmarks": list(benchmarks), "samples": samples,
        "ask": ask_settings(settings), "answers": str(folder / "answers"),
    }  # fmt: skip
    known = cells(train)
    return [_seed(own, folder, train, known, number, combinations, equal, asking, say) for number in seeds]


def _seed(
    settings: Settings, folder: Path, train: Dataset, known: Sequence[Combination | None], number: int,
    combinations: int, equal: Equal, asking: dict[str, Any], say: Callable[[str], None],
) -> Seed:  # fmt: skip
    apart = left_out([cell for cell in known if cell is not None and all(cell)], combinations, number)
    usable = [place for place, cell in enumerate(known) if cell is not None and cell not in apart]
    usable = usable[: settings.data.max_samples or None]
    steps = steps_of(settings, len(usable))
    chosen = min(len(usable), steps * settings.rollout.prompts_per_step)
    drawn = np.sort(np.random.default_rng([number, 1]).choice(usable, chosen, replace=False))
    data = folder / "data" / f"seed-{number}"
    for file, places in (("pool.jsonl", usable), ("questions.jsonl", drawn.tolist())):
        write_questions(train.select(places), data / file, data / "images", say)
    held = budget(settings, steps, chosen, equal)

    runs, names = folder / "runs" / f"seed-{number}", {stage: f"seed {number} {stage}" for stage in STAGES}
    pool = changed(settings, data=[str(data / "pool.jsonl")], seed=number, max_samples=0)
    baseline, start = base_of(pool, runs / FOLDERS[BASELINE], names[BASELINE], asking)
    start = changed(start, data=[str(data / "questions.jsonl")], warm_start="off")
    trained = {
        SFT: ("sft", changed(start, sft_steps=held.updates, sft_batch=held.sft_batch, output=str(runs / FOLDERS[SFT]))),
        RL: ("train", changed(start, steps=steps, output=str(runs / FOLDERS[RL]))),
    }
    jobs = {BASELINE: baseline} | {
        stage: Job(name=names[stage], command=command, training=to_yaml(one), model=f"{one.run.output}/model", **asking)
        for stage, (command, one) in trained.items()
    }
    return Seed(number=number, left_out=apart, budget=held, jobs=jobs)
