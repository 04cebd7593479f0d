"""Where a GPU's time goes: the ten kernels that take most of it, from torch.profiler.

`kernel_ms` beside `wall_ms` says how much of the time the GPU had nothing to do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from cases import Case, make_inputs
from gpu_child import Job, main
from gpu_exact import shape_of
from measure import synchronize
from peak import step as unit_of_work
from peers import IMPLEMENTATIONS
from torch.profiler import ProfilerActivity, profile

TOP = 10
REPEATS = 3


@contextmanager
def traced(job: Job, name: str, units: int = 1) -> Iterator[None]:
    """One row for the whole, and one for each of the top kernels; times are per unit of work."""
    device = torch.device(job.device)
    activity = ProfilerActivity.CUDA if job.device == "cuda" else ProfilerActivity.CPU
    synchronize(device)
    with profile(activities=[activity]) as profiler:
        start = time.perf_counter()
        yield
        synchronize(device)
        wall_ms = (time.perf_counter() - start) * 1e3 / units
    found: list[tuple[float, int, str]] = []
    for event in profiler.key_averages():
        if job.device == "cuda" and event.device_type.name != "CUDA":
            continue
        spent = event.self_device_time_total if job.device == "cuda" else event.self_cpu_time_total
        found.append((spent / 1e3 / units, event.count, event.key))
    found.sort(reverse=True)
    total = sum(ms for ms, _, _ in found)
    job.row(trace=name, wall_ms=wall_ms, kernel_ms=total, kernels=len(found))
    for rank, (ms, calls, kernel) in enumerate(found[:TOP], 1):
        share = ms / total if total else 0.0
        job.row(trace=name, rank=rank, kernel=kernel[:160], calls=calls / units, ms=ms, share=share)


def loss(job: Job) -> None:
    for head in ("trained", "frozen", "no_grad"):
        case = Case(*shape_of(job, 8192), torch.bfloat16, head)  # type: ignore[arg-type]
        run = unit_of_work(IMPLEMENTATIONS["ours"], make_inputs(case, torch.device(job.device)), case)
        run()
        with traced(job, f"loss, {head}, N = {case.rows}", REPEATS):
            for _ in range(REPEATS):
                run()


def step(job: Job) -> None:
    from step_sides import FULL_2B, QUICK, build_group, build_model, ours

    scale = replace(QUICK if job.tiny else FULL_2B, device=job.device)
    model = build_model(scale)
    model.model.visual.requires_grad_(False)
    run = ours(model, build_group(scale, model))
    for _ in range(2):
        run()
    with traced(job, "optimisation step, tower frozen", 1):
        run()


TASKS: dict[str, Callable[[Job], None]] = {"loss": loss, "step": step}

if __name__ == "__main__":
    sys.exit(main(TASKS))
