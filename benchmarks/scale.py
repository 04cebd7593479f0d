"""`throughput.py scale`: an optimiser step on more processes, under DDP and FSDP2, beside one process with one share.

Every process has one group of one shape, so that W of them do W times the work: where nothing is lost, a step takes
as long. torchrun starts them, as it does for training, and a process has equally many threads on every side. Before a
time is taken, loss and gradients are compared with those of one process that has all the groups.

As a script: one process of a run; see `launch`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from measure import commit, import_package, machine, synchronize, versions
from progress import Progress
from step_sides import FULL_2B, QUICK, SMALL, Scale, build_group, build_model

BRIEF = {"cpu": ["--rounds", "1", "--steps", "2", "--most", "2"], "cuda": ["--rounds", "1"]}
ALONE = "one process"
KINDS = ("ddp", "fsdp2")
ALLOWED_DIFFERENCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of any parameter's gradient norm, and of the loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each of which starts every side (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a side in a round (default 3)")
    parser.add_argument("--most", type=int, help="processes at most (default: every GPU, or every core up to 8)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round: checks, not numbers")


def run(args: argparse.Namespace) -> dict[str, Any]:
    scale = replace(QUICK if args.quick else FULL_2B if args.device == "cuda" else SMALL, device=args.device)
    rounds = 1 if args.quick else args.rounds
    most = torch.cuda.device_count() if args.device == "cuda" else min(os.cpu_count() or 1, 8)
    worlds = _worlds(min(most, args.most or most))
    device = torch.device(args.device)
    result: dict[str, Any] = {"efficiency_ddp": None, "efficiency_fsdp2": None, "scale": [], "shape": asdict(scale)}
    result |= {"machine": machine(device), "versions": versions(), "commit": commit()}
    if not worlds:
        return result
    threads = max(1, (os.cpu_count() or 1) // worlds[-1])
    result["machine"]["threads"] = threads
    sides = [(ALONE, 1), *((kind, world) for world in worlds for kind in KINDS)]
    request = {"shape": asdict(scale), "steps": args.steps, "threads": threads}
    truth: dict[int, list[float]] = {}
    found: dict[tuple[str, int], list[dict[str, Any]]] = {side: [] for side in sides}
    with Progress() as progress:
        progress.expect(rounds * len(sides))
        for number in range(rounds):
            for kind, world in sides:
                progress.say(f"{kind}, {world} groups" if world > 1 else kind)
                told = launch({**request, "kind": kind, "worlds": worlds if kind == ALONE and not truth else []}, world)
                for asked in told["asked"]:
                    truth[asked["groups"]] = asked["figures"]
                if world > 1 and number == 0:
                    _refuse_if_wrong(told["figures"], truth[world], kind, world, scale.dtype)
                found[kind, world].append(told)
                progress.tick()
    result["scale"] = rows = [_row(kind, world, told, len(scale.completions)) for (kind, world), told in found.items()]
    for row in rows:
        row["efficiency"] = row["completions_per_s"] / row["processes"] / rows[0]["completions_per_s"]
        if row["processes"] == worlds[-1]:
            result[f"efficiency_{row['kind']}"] = row["efficiency"]
    return result


def _worlds(most: int) -> list[int]:
    """2, 4, 8, … and the most, where it is no power of two."""
    return sorted(
        {2**power for power in range(1, most.bit_length()) if 2**power <= most} | ({most} if most > 1 else set())
    )


def launch(request: dict[str, Any], world: int) -> dict[str, Any]:
    """What rank 0 of a run says."""
    runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said.json")
        done = subprocess.run(
            [sys.executable, *runner, __file__, json.dumps(request), str(said)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(request["threads"])},
        )
        if done.returncode != 0:
            raise RuntimeError(f"{request['kind']} on {world} processes failed:\n{done.stderr[-3000:]}")
        return json.loads(said.read_text())


def _refuse_if_wrong(mine: list[float], truth: list[float], kind: str, world: int, dtype: str) -> None:
    worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(mine, truth, strict=True))
    if not worst < ALLOWED_DIFFERENCE[dtype]:
        raise RuntimeError(
            f"{kind} on {world} processes: loss or gradients differ by {worst:.1e} from one process with all groups: "
            "no time is reported"
        )


def _row(kind: str, world: int, told: list[dict[str, Any]], group: int) -> dict[str, Any]:
    seconds = [second for one in told for second in one["seconds"]]
    median = statistics.median(seconds)
    return {
        "kind": kind,
        "processes": world,
        "seconds": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "completions_per_s": world * group / median,
        "state_mb": told[0]["state_mb"],
    }


def show(result: dict[str, Any]) -> None:
    rows = result["scale"]
    if not rows:
        print("one processor: nothing to scale to")
        return
    print(
        f"{'side':12} {'processes':>9} {'seconds':>8} {'min':>7} {'max':>7} {'completions/s':>14} {'share kept':>11} "
        f"{'state MB':>9}"
    )
    for row in rows:
        print(
            f"{row['kind']:12} {row['processes']:9} {row['seconds']:8.2f} {row['seconds_min']:7.2f} "
            f"{row['seconds_max']:7.2f} {row['completions_per_s']:14.2f} {row['efficiency']:11.0%} "
            f"{row['state_mb']:9.0f}"
        )
    print(
        "share kept: completions/s of a process beside one alone; state: weights, gradients and optimizer of a process"
    )


def _serve(request: dict[str, Any], said: Path) -> None:
    import_package()
    from grpo_fast.train import assemble
    from grpo_fast.train.optim import build_optimizer
    from grpo_fast.train.ranks import ranks
    from grpo_fast.train.settings import Settings
    from grpo_fast.train.update import Updater

    scale = Scale(**request["shape"] | {"completions": tuple(request["shape"]["completions"])})
    settings = Settings()
    if request["kind"] in KINDS:
        settings = replace(settings, run=replace(settings.run, parallel=request["kind"]))
    torch.set_num_threads(request["threads"])
    with ranks(scale.device) as here:
        model = build_model(scale)
        groups = [build_group(scale, model, seed) for seed in range(max([here.world, *request["worlds"]]))]
        policy = assemble.policy_of(model, settings, here)
        wrapped = assemble.wrapped(policy, settings, here)
        # at a rate of 0 every update meets the same weights and costs what it always costs
        update = Updater(
            wrapped,
            build_optimizer(policy, settings.optim, 0.0),
            here,
            token_budget=settings.optim.token_budget,
            max_grad_norm=settings.optim.max_grad_norm,
        )
        asked = [{"groups": count, "figures": _figures(update, groups[:count])} for count in request["worlds"]]
        own = here.share(groups[: here.world])
        figures = _figures(update, own)
        seconds = []
        for _ in range(request["steps"]):
            policy.features.clear()
            here.wait()
            start = time.perf_counter()
            update(own)
            synchronize(here.device)
            here.wait()
            seconds.append(time.perf_counter() - start)
        if here.first:
            state = _bytes(policy, update.optimizer) / 1e6
            said.write_text(json.dumps({"seconds": seconds, "figures": figures, "asked": asked, "state_mb": state}))


def _figures(update: Any, groups: Any) -> list[float]:
    """The loss, and the norm of every parameter's gradient."""
    update.policy.features.clear()
    loss = update(groups).metrics["loss"]
    # in fp64: a CPU adds a norm up in fp32 so plainly that a large tensor and its two halves differ by 1e-4
    norms = [p.grad.double().norm() for p in update.policy.parameters() if p.grad is not None]
    return [loss, *(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm) for norm in norms)]


def _bytes(policy: Any, optimizer: torch.optim.Optimizer) -> int:
    """What this process holds of weights, gradients and the optimizer's moments."""
    tensors = [
        t for p in policy.parameters() for t in (p, p.grad, *optimizer.state.get(p, {}).values()) if t is not None
    ]
    own = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in own)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]), Path(sys.argv[2]))
