"""What a GPU session measures: loss, optimisation step, decoding and training, against peers and floors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from cases import Case
from gpu_child import Absent, Job, main, needs_modules
from gpu_exact import shape_of
from gpu_plan import HEADS
from gpu_traces import traced
from measure import ROOT, interleave, synchronize
from peers import IMPLEMENTATIONS

ROUNDS = 5
ROWS = (1024, 4096, 16384, 65536)
GRADIENT_DIFFERENCE = 0.1  # of all gradients together, bf16 on both sides


def loss_peers(job: Job) -> None:
    """Ours and one project's in one interleaved run: a peer that crashes takes no other's numbers along."""
    from loss import measure_case

    device = torch.device(job.device)
    reasons = {name: IMPLEMENTATIONS[name].unavailable(device, torch.bfloat16) for name in job.arguments}
    if all(reasons.values()):
        raise Absent("; ".join(sorted({str(reason) for reason in reasons.values()})))
    for head in ("trained", "frozen"):
        case = Case(*shape_of(job, 8192), torch.bfloat16, head)  # type: ignore[arg-type]
        for row in measure_case(case, ["ours", *job.arguments], device, 2 if job.tiny else ROUNDS, lambda: None):
            job.row(**row)


def loss_sizes(job: Job) -> None:
    from loss import measure_case

    device, heads = torch.device(job.device), [(64, 512)] if job.tiny else list(HEADS.values())
    cases = [Case(48 if job.tiny else 8192, *head, torch.bfloat16, kind)  # type: ignore[arg-type]
             for head in heads for kind in ("trained", "frozen", "no_grad")]  # fmt: skip
    if not job.tiny:
        cases += [Case(rows, *head, torch.bfloat16) for rows in ROWS for head in heads]
    for case in cases:
        for row in measure_case(case, ["ours"], device, 2 if job.tiny else ROUNDS, lambda: None):
            job.row(**row)
        if job.device == "cuda":
            torch.cuda.empty_cache()


def step_trl(job: Job) -> None:
    needs_modules("trl", "datasets")
    from step_sides import FULL_2B, QUICK, fresh
    from step_trl import beside_trl

    scale = replace(QUICK if job.tiny else FULL_2B, device=job.device)
    models, prompt = beside_trl(scale)
    for _, run in models.values():
        run()
    difference = _gradient_difference(models["ours"][0].model, models["trl"][0])
    job.check("gradients differ from TRL's", difference, GRADIENT_DIFFERENCE)
    if not difference <= GRADIENT_DIFFERENCE:
        return
    peaks = {name: _peak_mb(run, job.device) for name, (_, run) in models.items()}
    steps = {name: fresh(*one) for name, one in models.items()}
    timings = interleave(steps, 1 if job.tiny else ROUNDS, torch.device(job.device), lambda: None)
    ours, trl = timings["ours"], timings["trl"]
    job.row(
        step="Qwen2-VL-2B" if not job.tiny else "tiny", speedup_vs_trl=trl.median_ms / ours.median_ms,
        ours_ms=ours.median_ms, trl_ms=trl.median_ms, ours_spread=[ours.min_ms, ours.max_ms],
        trl_spread=[trl.min_ms, trl.max_ms], peaks_mb=peaks,
        peak_vs_trl=peaks["ours"] / peaks["trl"] if peaks["ours"] and peaks["trl"] else None,
        prompt=prompt, completions=list(scale.completions),
    )  # fmt: skip


def _gradient_difference(mine: Any, theirs: Any) -> float:
    """|g - g'| / |g'| over all parameters together."""
    found = dict(mine.named_parameters())
    apart, size = 0.0, 0.0
    for name, p in theirs.named_parameters():
        if (p.grad is None) != (found[name].grad is None):
            raise RuntimeError(f"only one side trains {name}")
        if p.grad is not None:
            apart += (found[name].grad.double() - p.grad.double()).square().sum().item()
            size += p.grad.double().square().sum().item()
    return (apart / size) ** 0.5


def _peak_mb(run: Callable[[], None], device: str) -> float | None:
    """Beyond weights and gradients, which exist by now; None on a CPU, where processes of their own would be needed."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def decode(job: Job) -> None:
    """Eager first, then captured: what takes long to compile must not cost the numbers that came before."""
    import rollout
    from step_sides import build_model

    from grpo_fast.rollout import Engine, SamplingParams

    scale, count = (rollout.TINY, 2) if job.tiny else (rollout.CUDA, 64)
    scale = replace(scale, device=job.device)
    model = build_model(scale).eval().requires_grad_(False)
    prompts = [rollout.prompt(scale, model, number) for number in range(count)]
    group, tokens = len(scale.completions), scale.completions[0]
    params = SamplingParams(max_tokens=tokens, stop_tokens=())
    for captured in (False, True):
        engine = Engine(model, static_shapes=captured)
        engine.generate(prompts, group, params)  # compiles and captures
        stats = []
        for _ in range(2):
            engine.generate(prompts, group, params)
            synchronize(torch.device(job.device))
            stats.append(engine.stats)
        shares = rollout.decode_shares(engine, scale, count, stats) if job.device == "cuda" else {}
        job.row(
            decode="captured" if captured else "eager", concurrent=count * group, prompt=scale.prompt, tokens=tokens,
            **shares, decode_seconds=[one.decode_seconds for one in stats],
            prefill_seconds=[one.prefill_seconds for one in stats],
            decode_tokens_per_s=(tokens - 1) * count * group / min(one.decode_seconds for one in stats),
        )  # fmt: skip
        name = f"decoding step, {'captured' if captured else 'eager'}"
        engine.generate(prompts, group, params, watch=traced_steps(job, name, tokens // 2, min(8, tokens // 3)))
        engine.release()


def traced_steps(job: Job, name: str, first: int, count: int) -> Callable[[Any], None]:
    """Traces `count` decoding steps from the one numbered `first`."""
    open_trace = ExitStack()

    def watch(stats: Any) -> None:
        if stats.decode_steps == first:
            open_trace.enter_context(traced(job, name, count))
        elif stats.decode_steps == first + count:
            open_trace.close()

    return watch


def train(job: Job) -> None:
    needs_modules("trl", "datasets")
    quick = ["--quick"] if job.tiny else ["--prompts", "1", "--rounds", "1"]
    command = [sys.executable, "benchmarks/throughput.py", "train", "--json", "--device", job.device, *quick]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr[-4000:])
    if done.returncode != 0:
        raise RuntimeError(f"throughput.py train ended with {done.returncode}")
    job.row(train=json.loads(done.stdout))


TASKS: dict[str, Callable[[Job], None]] = {
    "loss_peers": loss_peers, "loss_sizes": loss_sizes, "step_trl": step_trl, "decode": decode, "train": train,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(TASKS))
