"""Writes benchmarks/parity.md: how far GRPOLoss is from the installed TRL on every option that TRL's loss reads.

    python benchmarks/parity_report.py

It runs the table of tests/parity, the one that the tests hold to the same tolerance.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

# ruff: noqa: E402
from parity.batch import make_batch
from parity.compare import relative_errors
from parity.our_side import our_result
from parity.table import (
    CASES,
    COVERED_ELSEWHERE,
    INPUT_OPTIONS,
    LAYOUTS,
    READS_TO_OPTIONS,
    ROWS,
    TOLERANCE,
    Row,
    refused_by_trl,
    refused_by_us,
)  # fmt: skip
from parity.trl_side import trl_result

# how an option that is no entry of Row.options is exercised
BY_BATCH = {
    "loss_type": "every row",
    "importance_sampling_level": "every row",
    "gradient_accumulation_steps": "rows `accumulation …`",
    "steps_per_generation": "rows `accumulation …`, through `num_items_in_batch`",
    "use_vllm": "rows `sampler …`; here: whether `sampler_logps` is given",
}


def errors_of(row: Row) -> tuple[list[float], int, list[str]]:
    """The largest errors of loss, hidden-state gradient and head gradient, how many runs, and what was refused."""
    worst, runs, refused = [0.0, 0.0, 0.0], 0, set()
    for case in (case for case in CASES if case.row is row):
        if refused_by_trl(case):
            refused.add(f"{case.loss_type}: refused by TRL, and here")
            continue
        if refused_by_us(case):
            refused.add(f"{case.loss_type}: TRL ignores `{refused_by_us(case)}`; refused here")
            continue
        batch = make_batch(seed=case.id, **row.batch)
        expected = trl_result(case, batch)
        for layout, chunk_rows in LAYOUTS:
            found = relative_errors(our_result(case, batch, layout, chunk_rows), expected)
            worst = [max(pair) for pair in zip(worst, found, strict=True)]
            runs += 1
    return worst, runs, sorted(refused)


def options_table() -> Iterator[str]:
    yield "| GRPOConfig | here | compared in |"
    yield "|---|---|---|"
    options = {option for names in READS_TO_OPTIONS.values() for option in names} | set(INPUT_OPTIONS)
    for option in sorted(options | COVERED_ELSEWHERE.keys()):
        rows = [f"`{row.name}`" for row in ROWS if option in row.options]
        where = COVERED_ELSEWHERE.get(option) or BY_BATCH.get(option) or ", ".join(rows)
        ours = {
            "use_vllm": "`sampler_logps=` at the call",
            "steps_per_generation": "`num_items_in_batch=` at the call",
            "scale_rewards": "`group_advantages(scale=)`",
            "multi_objective_aggregation": "`group_advantages`",
            "reward_weights": "`group_advantages(weights=)`",
            "router_aux_loss_coef": "–",
        }.get(option, f"`{option.removeprefix('vllm_')}`")
        yield f"| `{option}` | {ours} | {where} |"


def rows_table() -> Iterator[str]:
    yield "| row | options off their defaults | runs | loss | gradient of hidden | gradient of head | not run |"
    yield "|---|---|---|---|---|---|---|"
    for row in ROWS:
        worst, runs, refused = errors_of(row)
        options = ", ".join(f"`{name}={value!r}`" for name, value in row.options.items())
        numbers = " | ".join(f"{value:.1e}" + (" **over**" if value > TOLERANCE else "") for value in worst)
        yield f"| {row.name} | {options} | {runs} | {numbers} | {'; '.join(refused)} |"


def report() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "torch", "transformers"))
    return "\n".join(
        [
            "# Parity with TRL",
            "",
            "Written by `python benchmarks/parity_report.py`; do not edit.",
            "",
            f"GRPOLoss against `GRPOTrainer._compute_loss` of the installed TRL ({versions}, "
            f"{platform.machine()}, CPU, fp32): the largest relative error (of the norm) over the eight loss types, "
            "both importance-sampling levels, padded and packed input, one chunk and several. "
            f"The tests hold every one of them to {TOLERANCE:g}; they also fail when a TRL reads an option that is "
            "not in this table.",
            "",
            "An error relative to the loss says little where its terms cancel: most advantages here are positive, so "
            "that the loss stays away from 0. A batch of mostly negative ones showed up to 2e-5 in the loss, its "
            "gradients within 1e-5.",
            "",
            "## Options",
            "",
            *options_table(),
            "",
            "## Rows",
            "",
            *rows_table(),
            "",
        ]
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = report()
    (HERE / "parity.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if "**over**" in text else 0)
