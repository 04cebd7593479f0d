"""`throughput.py step`: a training step on GRPOPolicy beside plain transformers with repeated prompts and beside TRL.

One group of G completions: forward, loss and backward. Gradients are compared before any time is taken; FLOPs, images
encoded and language-model tokens are counted from outside; peak memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

import torch
from measure import commit, interleave, machine, versions
from progress import Progress
from step_sides import FULL_2B, QUICK, SIDES, SMALL, Scale, counting, fresh, peak_mb, sides, worst_gradient_difference

BRIEF = {"cpu": ["--rounds", "1", "--small", "--no-trl", "--no-peak"], "cuda": ["--rounds", "3", "--no-trl"]}
ALLOWED_GRADIENT_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL's trainer out")
    parser.add_argument("--no-vocabulary", action="store_true", help="leave the real vocabulary of 151 936 out")
    parser.add_argument("--small", action="store_true", help="hidden 512 with 4 + 4 layers, not the 2B model's widths")
    parser.add_argument("--no-peak", action="store_true", help="leave memory out, which takes processes of its own")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round: checks, not numbers")


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    rounds = 1 if args.quick else args.rounds
    base = QUICK if args.quick else FULL_2B if args.device == "cuda" else SMALL if args.small else Scale()
    base = replace(base, device=args.device, dtype="float32" if args.quick else base.dtype)
    plan = [(base, False, rounds), (base, True, rounds)]
    if not (args.quick or args.small or args.no_vocabulary) and base.vocab != 151936:
        plan.append((replace(base, vocab=151936), False, min(rounds, 3)))
    trl = None
    with Progress() as progress:
        progress.expect(sum(len(SIDES) * (count + 2 - args.no_peak) for _, _, count in plan))
        rows = [measure(scale, trained, count, args, progress) for scale, trained, count in plan]
        if not args.no_trl:
            from step_trl import measure_trl

            progress.say("TRL's GRPOTrainer")
            trl = measure_trl(args.device, rounds, quick=args.quick)
    result: dict[str, Any] = {
        "speedup_vs_repeated": rows[0]["speedup"],
        "speedup_vs_repeated_trained": rows[1]["speedup"],
        "speedup_vs_trl": trl and trl["speedup"],
        "flops_vs_repeated": rows[0]["flops_ratio"],
        "flops_vs_repeated_trained": rows[1]["flops_ratio"],
        "peak_memory_vs_repeated": rows[0]["peak_ratio"],
        "peak_memory_vs_repeated_trained": rows[1]["peak_ratio"],
        "step": rows,
        "trl": trl,
    }
    device = torch.device(args.device)
    return result | {"machine": machine(device), "versions": versions(), "commit": commit()}


def measure(scale: Scale, trained: bool, rounds: int, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    progress.say(f"V={scale.vocab}, tower {'trained' if trained else 'frozen'}")
    made = sides(scale, trained)
    counts = {}
    for name, (model, step) in made.items():
        with counting(model) as found:
            step()
        counts[name] = found
        progress.tick()
    difference = worst_gradient_difference(made["ours"][0], made["repeated"][0])
    if not difference < ALLOWED_GRADIENT_DIFFERENCE[scale.dtype]:
        raise RuntimeError(f"gradients differ by {difference:.1e} from those of repeated prompts: no time is reported")
    steps = {name: fresh(*side) for name, side in made.items()}
    timings = interleave(steps, rounds, torch.device(scale.device), progress.tick)
    made.clear()
    steps.clear()
    peaks: dict[str, float | None] = dict.fromkeys(counts)
    for name in () if args.no_peak else counts:
        peaks[name] = peak_mb(scale, name, trained, args.threads)
        progress.tick()
    images = {name: found.patches / scale.image**2 for name, found in counts.items()}
    return {
        "tower": "trained" if trained else "frozen",
        "scale": asdict(scale) | {"prompt": scale.prompt, "group": len(scale.completions)},
        "grad_difference": difference,
        "speedup": timings["repeated"].median_ms / timings["ours"].median_ms,
        "flops_ratio": counts["ours"].flops / counts["repeated"].flops,
        "peak_ratio": peaks["ours"] and peaks["repeated"] and peaks["ours"] / peaks["repeated"],
        "sides": {
            name: {
                "ms": timings[name].median_ms,
                "ms_min": timings[name].min_ms,
                "ms_max": timings[name].max_ms,
                "tflop": counts[name].flops / 1e12,
                "vision_forwards": images[name],
                "lm_tokens": counts[name].lm_tokens,
                "peak_mb": peaks[name],
            }
            for name in counts
        },
    }


def show(result: dict[str, Any]) -> None:
    print(f"{'tower':8} {'V':>7} {'side':9} {'ms':>9} {'TFLOP':>8} {'images':>7} {'LM tokens':>10} {'peak MB':>9}")
    for row in result["step"]:
        for name, side in row["sides"].items():
            peak = "-" if side["peak_mb"] is None else f"{side['peak_mb']:.0f}"
            print(
                f"{row['tower']:8} {row['scale']['vocab']:7} {name:9} {side['ms']:9.1f} {side['tflop']:8.3f} "
                f"{side['vision_forwards']:7g} {side['lm_tokens']:10} {peak:>9}"
            )
        print(
            f"{'':16} {row['speedup']:.2f} x faster, {1 / row['flops_ratio']:.2f} x fewer FLOPs, "
            f"gradients within {row['grad_difference']:.0e}"
        )
    if result.get("trl"):
        trl = result["trl"]
        print(
            f"TRL's GRPOTrainer, optimisation part: {trl['trl_ms']:.1f} ms, ours {trl['ours_ms']:.1f} ms: "
            f"{trl['speedup']:.2f} x, gradients within {trl['grad_difference']:.0e}; {trl['note']}"
        )
